package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// output is how a command that lists prints.
type output struct {
	format string
	json   bool
}

func (o *output) flags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.format, "output", "o", "table", "table, json, ndjson or name")
	cmd.Flags().BoolVar(&o.json, "json", false, "the same as -o json")
}

// check refuses a form that there is not, before anything is asked.
func (o *output) check() error {
	switch o.format {
	case "table", "json", "ndjson", "name":
		return nil
	}
	return fault.New(fault.Invalid, "-o %q is not table, json, ndjson or name", o.format)
}

// print writes list in the chosen form. row gives a table's cells, name the one
// word that other commands take.
func print[T any](w io.Writer, o output, head string, list []T, row func(*T) []string, name func(*T) string) error {
	if o.json {
		o.format = "json"
	}
	switch o.format {
	case "json":
		if list == nil {
			list = []T{}
		}
		return writeJSON(w, list)
	case "ndjson":
		e := json.NewEncoder(w)
		for i := range list {
			if err := e.Encode(&list[i]); err != nil {
				return err
			}
		}
		return nil
	case "name":
		for i := range list {
			fmt.Fprintln(w, name(&list[i]))
		}
		return nil
	case "table":
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, head)
		for i := range list {
			fmt.Fprintln(t, strings.Join(row(&list[i]), "\t"))
		}
		return t.Flush()
	}
	return o.check()
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// blocked is shown for what no agent can ever take as things are; it is not recorded.
const blocked pipeline.State = "blocked"

// glyphs make a state readable without colour, beside its word.
var glyphs = map[pipeline.State]string{
	blocked:          "◇",
	pipeline.Pending: "○", pipeline.Ready: "○", pipeline.Offered: "◐", pipeline.Running: "◐", pipeline.InDoubt: "?",
	pipeline.Success: "✓", pipeline.Failure: "✗", pipeline.Error: "!", pipeline.Timeout: "T",
	pipeline.Cancelled: "-", pipeline.Skipped: "–", pipeline.NotNeeded: "✓",
}

func shown(s pipeline.State) string { return glyphs[s] + " " + string(s) }

func took(from, to time.Time) string {
	switch {
	case from.IsZero():
		return ""
	case to.IsZero():
		return time.Since(from).Round(time.Second).String() + "…"
	}
	d := to.Sub(from)
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	d := time.Since(t)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	}
	return t.UTC().Format(time.DateOnly)
}

// didYouMean ends a sentence about a name that is not there with the nearest that
// is, or with all of a few.
func didYouMean(name string, known []string) string {
	const few = 8
	switch s := config.DidYouMean(name, known); {
	case s != "":
		return "; " + s
	case len(known) == 0:
		return "; there is none yet"
	case len(known) <= few:
		return "; there is " + strings.Join(known, ", ")
	}
	return ""
}

// oneLine makes text from outside safe for a terminal, on one line.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r):
			return -1
		}
		return r
	}, s)
}

// calm lets through text, newlines and, unless plain is set, colours, and drops every
// other terminal sequence: a log must not be able to set a title, fill the clipboard,
// or write over what was printed before it.
type calm struct {
	w     io.Writer
	plain bool
	state int
	seq   []byte
	out   []byte
}

const (
	calmText = iota
	calmEscape
	calmCSI
	calmString // OSC, DCS and the like, up to BEL or ESC \
	calmStringEscape
)

func (c *calm) Write(p []byte) (int, error) {
	c.out = c.out[:0]
	for _, b := range p {
		c.step(b)
	}
	if _, err := c.w.Write(c.out); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *calm) step(b byte) {
	const mostSequence = 64
	switch c.state {
	case calmEscape:
		switch b {
		case '[':
			c.state, c.seq = calmCSI, append(c.seq[:0], 0x1b, '[')
		case ']', 'P', '_', '^', 'X':
			c.state = calmString
		default:
			c.state = calmText
		}
	case calmCSI:
		c.seq = append(c.seq, b)
		if b >= 0x40 && b <= 0x7e || len(c.seq) > mostSequence {
			if b == 'm' && !c.plain {
				c.out = append(c.out, c.seq...)
			}
			c.state = calmText
		}
	case calmString:
		switch b {
		case 0x07:
			c.state = calmText
		case 0x1b:
			c.state = calmStringEscape
		}
	case calmStringEscape:
		c.state = calmText
	default:
		switch {
		case b == 0x1b:
			c.state = calmEscape
		case b >= 0x20 && b != 0x7f || b == '\n' || b == '\t':
			c.out = append(c.out, b)
		case b == '\r':
			// A carriage return would let later text hide earlier text.
		}
	}
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// colour reports whether f may be given colours.
func colour(f *os.File) bool {
	_, no := os.LookupEnv("NO_COLOR")
	return !no && isTerminal(f)
}
