package graph_test

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/maestro-cd/maestro/reconciler/internal/web/graph"
)

func TestNeededTasksStandToTheLeft(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		nodes := acyclic(t)
		d := graph.Layout(nodes)
		for i, n := range nodes {
			for _, need := range n.Needs {
				if d.Boxes[need].X+d.Boxes[need].W >= d.Boxes[i].X {
					t.Fatalf("%d needs %d, but %v is not left of %v", i, need, d.Boxes[need], d.Boxes[i])
				}
			}
		}
		for i, a := range d.Boxes {
			if a.X < 0 || a.Y < 0 || a.X+a.W > d.Width || a.Y+a.H > d.Height {
				t.Fatalf("box %d %v leaves the picture %dx%d", i, a, d.Width, d.Height)
			}
			for j, b := range d.Boxes[:i] {
				if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
					t.Fatalf("boxes %d %v and %d %v overlap", i, a, j, b)
				}
			}
		}
		if again := graph.Layout(nodes); !reflect.DeepEqual(d, again) {
			t.Fatal("the same graph was drawn in two ways")
		}
	})
}

func TestEdgesRunForwardBetweenTheirBoxes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := graph.Layout(acyclic(t))
		for _, e := range d.Edges {
			from, to := d.Boxes[e.From], d.Boxes[e.To]
			first, last := e.Points[0], e.Points[len(e.Points)-1]
			if first.X != from.X+from.W || last.X != to.X {
				t.Fatalf("edge %v does not join %v and %v", e, from, to)
			}
			for i := 1; i < len(e.Points); i++ {
				if e.Points[i].X < e.Points[i-1].X {
					t.Fatalf("edge %v runs back", e)
				}
			}
		}
	})
}

func TestLongEdgeGoesAroundBoxes(t *testing.T) {
	t.Parallel()
	// a -> b -> c -> d, and e -> d where a -> e: the edge from e passes c's column.
	d := graph.Layout([]graph.Node{
		{Name: "a"},
		{Name: "b", Needs: []int{0}},
		{Name: "c", Needs: []int{1}},
		{Name: "d", Needs: []int{2, 4}},
		{Name: "e", Needs: []int{0}},
	})
	for _, e := range d.Edges {
		for _, p := range e.Points[1 : len(e.Points)-1] {
			for i, b := range d.Boxes {
				if p.X >= b.X && p.X <= b.X+b.W && p.Y >= b.Y && p.Y <= b.Y+b.H {
					t.Errorf("edge %d->%d passes through box %d at %v", e.From, e.To, i, p)
				}
			}
		}
	}
}

func TestImpliedEdgeIsNotDrawn(t *testing.T) {
	t.Parallel()
	d := graph.Layout([]graph.Node{{Name: "a"}, {Name: "b", Needs: []int{0}}, {Name: "c", Needs: []int{0, 1}}})
	if len(d.Edges) != 2 {
		t.Errorf("edges %v, want a->b and b->c only", d.Edges)
	}
}

func TestCircleAndStrayIndexesAreLeftOut(t *testing.T) {
	t.Parallel()
	d := graph.Layout([]graph.Node{{Name: "a", Needs: []int{1}}, {Name: "b", Needs: []int{0, 7, -1}}, {Name: "c", Needs: []int{2}}})
	if len(d.Boxes) != 3 || len(d.Edges) != 0 {
		t.Errorf("got %d boxes and edges %v, want 3 and none", len(d.Boxes), d.Edges)
	}
	if empty := graph.Layout(nil); len(empty.Boxes) != 0 {
		t.Errorf("an empty graph has boxes %v", empty.Boxes)
	}
}

func TestTwoThousandTasksAreLaidOutAtOnce(t *testing.T) {
	t.Parallel()
	for name, needs := range map[string]func(i int) []int{
		"a wide tree":   func(i int) []int { return []int{(i - 1) / 3} },
		"all on all":    func(i int) []int { return upTo(i) },
		"one long line": func(i int) []int { return []int{i - 1} },
		"all on first":  func(int) []int { return []int{0} },
		"long edges":    func(i int) []int { return []int{i - 1, max(0, i-500+i%7)} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			nodes := make([]graph.Node, 2000)
			for i := range nodes {
				nodes[i].Name = fmt.Sprint("task-", i)
				if i > 0 {
					nodes[i].Needs = needs(i)
				}
			}
			start := time.Now()
			graph.Layout(nodes)
			// Generous: it takes tens of milliseconds on an idle machine, and much more
			// with the race detector on a busy one. What does not end is what this finds.
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %v", took)
			} else {
				t.Logf("took %v", took)
			}
		})
	}
}

func upTo(i int) []int {
	list := make([]int, i)
	for k := range list {
		list[k] = k
	}
	return list
}

func acyclic(t *rapid.T) []graph.Node {
	nodes := make([]graph.Node, rapid.IntRange(1, 30).Draw(t, "nodes"))
	for i := range nodes {
		nodes[i].Name = rapid.StringMatching(`[a-z][a-z0-9-]{0,40}`).Draw(t, "name")
		if i > 0 {
			nodes[i].Needs = rapid.SliceOfNDistinct(rapid.IntRange(0, i-1), 0, min(i, 4), rapid.ID[int]).Draw(t, "needs")
		}
	}
	return nodes
}
