package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

func newGraph() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "graph COMPOSITION [DIR]", Short: "Print the tasks of a composition as a picture", Args: cobra.RangeArgs(1, 2),
		Long: `Print the tasks of a composition and what each waits for: as text, or as a picture for
dot (Graphviz) or Mermaid, which forges draw in Markdown.`,
		Example: "  reconciler graph release\n  reconciler graph release --format dot | dot -Tsvg > release.svg",
		RunE: func(cmd *cobra.Command, args []string) error {
			draw, ok := drawings[format]
			if !ok {
				return fault.New(fault.Invalid, "--format %q is not text, dot or mermaid", format)
			}
			_, c, err := evaluateOne(cmd.Context(), dirOf(args[1:]), args[0])
			if err != nil {
				return err
			}
			return draw(cmd.OutOrStdout(), c)
		},
	}
	cmd.Flags().StringVar(&format, "format", "text", "text, dot or mermaid")
	return cmd
}

// evaluateOne reads a working copy and returns one composition of it.
func evaluateOne(ctx context.Context, dir, name string) (*pipeline.Config, *pipeline.Composition, error) {
	dir, err := moduleAbove(dir)
	if err != nil {
		return nil, nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "cue.mod", "module.cue")); err != nil {
		return nil, nil, fault.New(fault.Invalid,
			"neither %s nor a folder above it is an ops repository (none has cue.mod/module.cue): run this in a clone of it, or give its folder", dir)
	}
	e, err := newEvaluator(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, nil, err
	}
	defer e.Close()
	cfg, err := e.Evaluate(ctx, "", config.FSTree(os.DirFS(dir)))
	if err != nil {
		return nil, nil, err
	}
	c := cfg.Composition(pipeline.CompositionName(name))
	if c != nil {
		return &cfg, c, nil
	}
	if pipeline.HasErrors(cfg.Diagnostics) {
		return nil, nil, fault.New(fault.Invalid, "there is no composition %q, or it has errors: %s; see all with: reconciler vet", name, cfg.Diagnostics[0])
	}
	var names []string
	for i := range cfg.Compositions {
		names = append(names, string(cfg.Compositions[i].Name))
	}
	return nil, nil, fault.New(fault.NotFound, "there is no composition %q; there are: %s", name, strings.Join(names, ", "))
}

// drawings are the ways to draw a composition.
var drawings = map[string]func(io.Writer, *pipeline.Composition) error{
	"text": drawText, "dot": drawDot, "mermaid": drawMermaid,
}

// drawText lists the tasks in an order in which they can run. Tasks of one number can
// run at the same time.
func drawText(w io.Writer, c *pipeline.Composition) error {
	rank := ranks(c)
	tasks := make([]*pipeline.Task, len(c.Tasks))
	for i := range c.Tasks {
		tasks[i] = &c.Tasks[i]
	}
	slices.SortStableFunc(tasks, func(a, b *pipeline.Task) int { return rank[a.Name] - rank[b.Name] })
	return print(w, output{format: "table"}, "STEP\tTASK\tUSES\tAFTER", tasks, func(t **pipeline.Task) []string {
		return []string{fmt.Sprint(rank[(*t).Name]), string((*t).Name), (*t).Uses, after(*t)}
	}, nil)
}

// after says what a task waits for.
func after(t *pipeline.Task) string {
	var names []string
	for _, n := range t.Needs {
		names = append(names, string(n))
	}
	s := strings.Join(names, ", ")
	switch t.When {
	case pipeline.Always:
		s += " (however they end)"
	case pipeline.OnFailure:
		s += " (when one of them fails)"
	}
	return strings.TrimSpace(s)
}

// ranks numbers each task from 1 by the longest way to it. Tasks of a configuration
// without errors form no circle.
func ranks(c *pipeline.Composition) map[pipeline.TaskName]int {
	out := map[pipeline.TaskName]int{}
	var visit func(t *pipeline.Task) int
	visit = func(t *pipeline.Task) int {
		if n, known := out[t.Name]; known {
			return n
		}
		out[t.Name] = 1 // ends a circle, if there is one
		most := 1
		for _, name := range t.Needs {
			if n := c.Task(name); n != nil {
				most = max(most, visit(n)+1)
			}
		}
		out[t.Name] = most
		return most
	}
	for i := range c.Tasks {
		visit(&c.Tasks[i])
	}
	return out
}

func drawDot(w io.Writer, c *pipeline.Composition) error {
	var b strings.Builder
	fmt.Fprintf(&b, "digraph %q {\n  rankdir=LR\n  node [shape=box]\n", c.Name)
	for i := range c.Tasks {
		t := &c.Tasks[i]
		shape := ""
		if t.Gate != nil {
			shape = ", shape=hexagon"
		}
		fmt.Fprintf(&b, "  %q [label=%q%s]\n", t.Name, string(t.Name)+"\n"+t.Uses, shape)
		for _, n := range t.Needs {
			style := ""
			if t.When == pipeline.OnFailure {
				style = " [style=dashed]"
			}
			fmt.Fprintf(&b, "  %q -> %q%s\n", n, t.Name, style)
		}
	}
	b.WriteString("}\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// drawMermaid names the nodes by number, because words such as "end" mean something
// to Mermaid.
func drawMermaid(w io.Writer, c *pipeline.Composition) error {
	var b strings.Builder
	b.WriteString("flowchart LR\n")
	number := map[pipeline.TaskName]int{}
	for i := range c.Tasks {
		number[c.Tasks[i].Name] = i
	}
	for i := range c.Tasks {
		t := &c.Tasks[i]
		left, right := "[", "]"
		switch {
		case t.Gate != nil:
			left, right = "{{", "}}"
		case t.Call != nil:
			left, right = "[[", "]]"
		}
		fmt.Fprintf(&b, "  t%d%s\"%s\"%s\n", i, left, t.Name, right)
		arrow := "-->"
		if t.When == pipeline.OnFailure {
			arrow = "-.->"
		}
		for _, n := range t.Needs {
			fmt.Fprintf(&b, "  t%d %s t%d\n", number[n], arrow, i)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
