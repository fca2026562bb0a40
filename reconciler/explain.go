package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
)

func newExplain() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "explain [CODE]", Short: "Explain the code of a mistake", Args: cobra.MaximumNArgs(1),
		Long: `Explain the code of a mistake, as it stands in brackets in what vet and plan say, with
an example of what is wrong and of what is right. Without a code all are listed.`,
		Example: "  reconciler explain RC0107",
		RunE: func(cmd *cobra.Command, args []string) error {
			w := cmd.OutOrStdout()
			if len(args) == 0 {
				return listExplanations(w, asJSON)
			}
			e, ok := config.Explain(strings.Trim(args[0], "[]"))
			switch {
			case !ok:
				return fault.New(fault.NotFound, "there is no code %q; list all with: reconciler explain", args[0])
			case asJSON:
				return writeJSON(w, e)
			}
			return explain(w, &e)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

func listExplanations(w io.Writer, asJSON bool) error {
	return print(w, output{format: "table", json: asJSON}, "CODE\tMEANS", config.Explanations(), func(e *config.Explanation) []string {
		return []string{e.Code, e.Title}
	}, nil)
}

func explain(w io.Writer, e *config.Explanation) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", e.Code, e.Title)
	if e.Text != "" {
		fmt.Fprintf(&b, "\n%s\n", strings.TrimSpace(e.Text))
	}
	example(&b, "Wrong", e.Wrong)
	example(&b, "Right", e.Right)
	_, err := io.WriteString(w, b.String())
	return err
}

func example(b *strings.Builder, title string, files []config.ExampleFile) {
	for _, f := range files {
		if f.Text == "" {
			fmt.Fprintf(b, "\n%s: without %s\n", title, f.Name)
			continue
		}
		fmt.Fprintf(b, "\n%s, in %s:\n\n", title, f.Name)
		for line := range strings.Lines(strings.TrimRight(f.Text, "\n")) {
			fmt.Fprintf(b, "    %s\n", strings.TrimRight(line, "\n"))
		}
	}
}
