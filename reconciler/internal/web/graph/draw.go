package graph

import (
	"math"
	"unicode/utf8"
)

// draw turns layers into columns and vertices into boxes and paths.
func (g *layered) draw() Drawing {
	d := Drawing{Boxes: make([]Box, len(g.nodes))}
	left := make([]int, len(g.layers))
	width := make([]int, len(g.layers))
	x := margin
	for l, layer := range g.layers {
		for _, i := range layer {
			if n := g.vertices[i].node; n >= 0 {
				width[l] = max(width[l], boxWidth(g.nodes[n].Name))
			}
		}
		left[l] = x
		x += width[l] + columnGap
	}
	d.Width = x - columnGap + margin
	lowest := 0.0
	for _, v := range g.vertices {
		lowest = max(lowest, v.y+v.leastHalf)
		if v.node >= 0 {
			d.Boxes[v.node] = Box{X: left[v.layer], Y: round(v.y-v.leastHalf) + margin, W: width[v.layer], H: boxHeight}
		}
	}
	d.Height = round(lowest) + 2*margin
	for _, c := range g.chains {
		from, to := d.Boxes[c.from], d.Boxes[c.to]
		e := Edge{From: c.from, To: c.to, Points: []Point{{from.X + from.W, from.Y + from.H/2}}}
		for _, i := range c.through {
			v := g.vertices[i]
			y := round(v.y) + margin
			e.Points = append(e.Points, Point{left[v.layer], y}, Point{left[v.layer] + width[v.layer], y})
		}
		e.Points = append(e.Points, Point{to.X, to.Y + to.H/2})
		d.Edges = append(d.Edges, e)
	}
	return d
}

func boxWidth(name string) int {
	return min(max(utf8.RuneCountInString(name)*charWidth+boxExtra, leastBox), mostBox)
}

func round(f float64) int { return int(math.Round(f)) }

// topological returns the nodes so that each comes after all it needs; nodes on
// a circle, and those behind one, are left out.
func topological(needs [][]int) []int {
	waits := make([]int, len(needs))
	then := make([][]int, len(needs))
	var order []int
	for i, list := range needs {
		waits[i] = len(list)
		for _, n := range list {
			then[n] = append(then[n], i)
		}
		if len(list) == 0 {
			order = append(order, i)
		}
	}
	for k := 0; k < len(order); k++ {
		for _, i := range then[order[k]] {
			if waits[i]--; waits[i] == 0 {
				order = append(order, i)
			}
		}
	}
	return order
}

// reduce returns what each node needs without what follows from the rest: when c
// needs a and b, and b needs a, the line from a to c tells nothing new. A node on
// a circle needs nothing.
func reduce(nodes []Node) [][]int {
	needs := make([][]int, len(nodes))
	for i, n := range nodes {
		seen := map[int]bool{}
		for _, d := range n.Needs {
			if d >= 0 && d < len(nodes) && d != i && !seen[d] {
				seen[d] = true
				needs[i] = append(needs[i], d)
			}
		}
	}
	order := topological(needs)
	words := (len(nodes) + 63) / 64
	reach := make([][]uint64, len(nodes))
	out := make([][]int, len(nodes))
	for _, i := range order {
		far := make([]uint64, words)
		for _, d := range needs[i] {
			for w, b := range reach[d] {
				far[w] |= b
			}
		}
		for _, d := range needs[i] {
			if far[d/64]&(1<<(d%64)) == 0 {
				out[i] = append(out[i], d)
			}
		}
		for _, d := range needs[i] {
			far[d/64] |= 1 << (d % 64)
		}
		reach[i] = far
	}
	return out
}
