package web

import (
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/web/graph"
)

// picture is a laid-out graph with what to write into its boxes.
type picture struct {
	graph.Drawing
	Nodes []pictureNode
	Paths []picturePath
}

type pictureNode struct {
	graph.Box
	Name, Label, URL string
	State            pipeline.State // "" in the picture of a declaration
	Title            string
}

// GX and GY are the corner of the glyph, TX and TY where the label begins.
func (n pictureNode) GX() int { return n.X + 8 }
func (n pictureNode) GY() int { return n.Y + (n.H-14)/2 }
func (n pictureNode) TX() int { return n.X + 28 }
func (n pictureNode) TY() int { return n.Y + n.H/2 + 4 }

type picturePath struct {
	D string
	// State is that of the task it comes from; "" in a declaration.
	State pipeline.State
}

// declared pictures the graph of a composition.
func declared(c *pipeline.Composition) *picture {
	names := make([]pipeline.TaskName, len(c.Tasks))
	needs := make([][]pipeline.TaskName, len(c.Tasks))
	for i := range c.Tasks {
		names[i], needs[i] = c.Tasks[i].Name, c.Tasks[i].Needs
	}
	p := pictureOf(names, needs)
	for i := range p.Nodes {
		p.Nodes[i].Title = string(names[i]) + " (" + c.Tasks[i].Uses + ")"
	}
	return p
}

func pictureOf(names []pipeline.TaskName, needs [][]pipeline.TaskName) *picture {
	index := make(map[pipeline.TaskName]int, len(names))
	for i, n := range names {
		index[n] = i
	}
	nodes := make([]graph.Node, len(names))
	for i, n := range names {
		nodes[i].Name = string(n)
		for _, d := range needs[i] {
			if k, ok := index[d]; ok {
				nodes[i].Needs = append(nodes[i].Needs, k)
			}
		}
	}
	p := &picture{Drawing: graph.Layout(nodes)}
	for i, b := range p.Boxes {
		p.Nodes = append(p.Nodes, pictureNode{Box: b, Name: string(names[i]), Label: label(string(names[i]))})
	}
	for _, e := range p.Edges {
		p.Paths = append(p.Paths, picturePath{D: pathOf(e.Points)})
	}
	return p
}

// label shortens a name to what fits into a box, keeping both of its ends.
func label(name string) string {
	if len(name) <= graph.MostChars {
		return name
	}
	head := graph.MostChars/2 + 2
	return name[:head] + "…" + name[len(name)-(graph.MostChars-head-1):]
}

// pathOf writes the points as curves that leave and arrive level.
func pathOf(points []graph.Point) string {
	var b strings.Builder
	put := func(prefix string, x, y int) { b.WriteString(prefix + itoa(x) + " " + itoa(y)) }
	put("M", points[0].X, points[0].Y)
	for i := 1; i < len(points); i++ {
		a, z := points[i-1], points[i]
		if a.Y == z.Y {
			put("H", z.X, z.Y)
			continue
		}
		mid := (a.X + z.X) / 2
		put("C", mid, a.Y)
		put(",", mid, z.Y)
		put(",", z.X, z.Y)
	}
	return strings.ReplaceAll(b.String(), "H", "L")
}
