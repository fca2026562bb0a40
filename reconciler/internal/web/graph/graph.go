// Package graph lays out a task graph as a picture: columns from left to right,
// so that every task stands to the right of all it needs. It computes places and
// draws nothing; equal input gives equal output, to the pixel.
//
// The method is the usual one in its simple form: longest-path layers, dummy
// nodes where an edge crosses a layer, barycentre sweeps against crossings, and
// an isotonic fit that pulls each node towards its neighbours.
package graph

import (
	"slices"
)

// Node is a task. Needs are indexes into the list of nodes; those that are not,
// or that would close a circle, are left out of the picture.
type Node struct {
	Name  string
	Needs []int
}

// Drawing is a picture of Width by Height pixels. Boxes[i] is where node i stands.
type Drawing struct {
	Width, Height int
	Boxes         []Box
	Edges         []Edge
}

// Box is a node's rectangle; X and Y are its upper left corner.
type Box struct{ X, Y, W, H int }

// Edge leads from a needed node to the one that needs it. Points begin at the
// right side of the first and end at the left side of the second.
type Edge struct {
	From, To int
	Points   []Point
}

// Point is a place in the picture.
type Point struct{ X, Y int }

const (
	boxHeight = 28
	rowGap    = 12
	columnGap = 44
	margin    = 8
	charWidth = 7  // of the 12 px type that names are set in
	boxExtra  = 42 // glyph and padding
	leastBox  = 84
	mostBox   = 230
	dummySize = 6
	// mostDummies bounds the work for a graph with very many long edges: beyond
	// it, long edges are drawn straight.
	mostDummies = 20_000
	sweeps      = 4
)

// MostChars is how many characters of a name fit into the widest box.
const MostChars = (mostBox - boxExtra) / charWidth

// Layout places the nodes.
func Layout(nodes []Node) Drawing {
	needs := reduce(nodes)
	g := &layered{nodes: nodes, needs: needs}
	g.rank()
	g.fill()
	g.order()
	g.place()
	return g.draw()
}

// vertex is a node or a dummy on a long edge.
type vertex struct {
	node      int // -1 for a dummy
	layer     int
	rank      int // place in its layer
	y         float64
	left      []int // vertices of the layer before
	right     []int
	leastHalf float64
}

type layered struct {
	nodes    []Node
	needs    [][]int
	layerOf  []int
	vertices []vertex
	layers   [][]int
	chains   []chain
}

// chain is an edge with its dummies.
type chain struct {
	from, to int
	through  []int
}

// rank puts each node one layer right of the last that it needs.
func (g *layered) rank() {
	g.layerOf = make([]int, len(g.nodes))
	for _, i := range topological(g.needs) {
		for _, n := range g.needs[i] {
			g.layerOf[i] = max(g.layerOf[i], g.layerOf[n]+1)
		}
	}
}

// fill makes the vertices in file order, then the dummies of long edges.
func (g *layered) fill() {
	deepest := 0
	for _, l := range g.layerOf {
		deepest = max(deepest, l)
	}
	g.layers = make([][]int, deepest+1)
	for i := range g.nodes {
		g.add(vertex{node: i, layer: g.layerOf[i], leastHalf: boxHeight / 2})
	}
	dummies := 0
	for to, list := range g.needs {
		for _, from := range list {
			c := chain{from: from, to: to}
			if long := g.layerOf[to] - g.layerOf[from] - 1; dummies+long <= mostDummies {
				dummies += long
				for l := g.layerOf[from] + 1; l < g.layerOf[to]; l++ {
					c.through = append(c.through, g.add(vertex{node: -1, layer: l, leastHalf: dummySize / 2}))
				}
				path := append(append([]int{from}, c.through...), to)
				for i := 1; i < len(path); i++ {
					g.vertices[path[i-1]].right = append(g.vertices[path[i-1]].right, path[i])
					g.vertices[path[i]].left = append(g.vertices[path[i]].left, path[i-1])
				}
			}
			g.chains = append(g.chains, c)
		}
	}
}

func (g *layered) add(v vertex) int {
	i := len(g.vertices)
	v.rank = len(g.layers[v.layer])
	g.vertices = append(g.vertices, v)
	g.layers[v.layer] = append(g.layers[v.layer], i)
	return i
}

// order sweeps right and left, sorting each layer by the mean place of its
// neighbours. The sort is stable, so file order decides what nothing else does.
func (g *layered) order() {
	for range sweeps {
		for l := 1; l < len(g.layers); l++ {
			g.sortLayer(l, func(v *vertex) []int { return v.left })
		}
		for l := len(g.layers) - 2; l >= 0; l-- {
			g.sortLayer(l, func(v *vertex) []int { return v.right })
		}
	}
}

func (g *layered) sortLayer(l int, neighbours func(*vertex) []int) {
	layer := g.layers[l]
	key := make(map[int]float64, len(layer))
	for _, i := range layer {
		list := neighbours(&g.vertices[i])
		if len(list) == 0 {
			key[i] = float64(g.vertices[i].rank)
			continue
		}
		sum := 0.0
		for _, n := range list {
			sum += float64(g.vertices[n].rank)
		}
		key[i] = sum / float64(len(list))
	}
	slices.SortStableFunc(layer, func(a, b int) int {
		switch {
		case key[a] < key[b]:
			return -1
		case key[a] > key[b]:
			return 1
		}
		return 0
	})
	for rank, i := range layer {
		g.vertices[i].rank = rank
	}
}

// place gives every vertex a height. Layers are first stacked, then fitted to
// their neighbours on either side in turn.
func (g *layered) place() {
	for l := range g.layers {
		g.fit(l, func(int) (float64, bool) { return 0, false })
	}
	for range sweeps {
		for l := 1; l < len(g.layers); l++ {
			g.fit(l, func(i int) (float64, bool) { return g.mean(g.vertices[i].left) })
		}
		for l := len(g.layers) - 2; l >= 0; l-- {
			g.fit(l, func(i int) (float64, bool) { return g.mean(g.vertices[i].right) })
		}
	}
	top := 0.0
	for i, v := range g.vertices {
		if i == 0 || v.y-v.leastHalf < top {
			top = v.y - v.leastHalf
		}
	}
	for i := range g.vertices {
		g.vertices[i].y -= top
	}
}

func (g *layered) mean(list []int) (float64, bool) {
	if len(list) == 0 {
		return 0, false
	}
	sum := 0.0
	for _, i := range list {
		sum += g.vertices[i].y
	}
	return sum / float64(len(list)), true
}

// fit finds the heights that keep the layer's order and distances and are
// nearest, in the sum of squares, to what wish asks for. A vertex without a wish
// asks to stay. It pools adjacent violators.
func (g *layered) fit(l int, wish func(int) (float64, bool)) {
	type block struct {
		sum   float64
		count int
	}
	layer := g.layers[l]
	offsets := make([]float64, len(layer))
	blocks := make([]block, 0, len(layer))
	for k, i := range layer {
		v := &g.vertices[i]
		if k > 0 {
			before := &g.vertices[layer[k-1]]
			offsets[k] = offsets[k-1] + before.leastHalf + v.leastHalf + rowGap
		}
		want, ok := wish(i)
		if !ok {
			want = max(v.y, 0)
		}
		blocks = append(blocks, block{want - offsets[k], 1})
		for n := len(blocks); n > 1; n = len(blocks) {
			a, b := blocks[n-2], blocks[n-1]
			if a.sum/float64(a.count) <= b.sum/float64(b.count) {
				break
			}
			blocks = append(blocks[:n-2], block{a.sum + b.sum, a.count + b.count})
		}
	}
	k := 0
	for _, b := range blocks {
		for range b.count {
			g.vertices[layer[k]].y = b.sum/float64(b.count) + offsets[k]
			k++
		}
	}
}
