package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/sops"
)

func newSecretsCheck() *cobra.Command {
	opt := options{personal: true}
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check [DIR]", Short: "Check every secret of a working copy, and say who may use it", Args: cobra.MaximumNArgs(1),
		Long: `Read every secret that a working copy declares, as a task would get it, and say which
tasks name it and what the policy says of it; then look at every encrypted file: to whom
it is encrypted, and whether it opens. No value is printed.

A file that your keys do not open is judged as far as that goes without one, and is a
warning; so is a variable or a file of the server that this machine does not have. The
exit code is 1 when there is a problem. "reconciler check" reads all secrets as a server
would.`,
		Example: "  reconciler secrets check\n  reconciler secrets check ~/pipelines --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := moduleAbove(dirOf(args))
			if err != nil {
				return err
			}
			found, err := inspectSecrets(cmd.Context(), opt, dir)
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), found)
			} else {
				found.print(cmd.OutOrStdout())
			}
			if err == nil && found.Problems > 0 {
				err = &exitError{code: exitFailed}
			}
			return err
		},
	}
	opt.secretsFlag(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return cmd
}

// inspection is what secrets check has found, and prints with --json.
type inspection struct {
	Secrets  []secretState `json:"secrets"`
	Files    []sealedState `json:"files"`
	Errors   []findingJSON `json:"errors"` // of the configuration, about secrets
	Problems int           `json:"problems"`
	Warnings int           `json:"warnings"`
	keys     []string      // public
	tree     fs.FS
	cfg      *pipeline.Config
	values   *secrets
}

type secretState struct {
	Name     pipeline.SecretName `json:"name"`
	Declared string              `json:"declared,omitempty"` // file:line:column
	From     string              `json:"from"`
	State    string              `json:"state"` // ok, warning or problem
	Text     string              `json:"text,omitempty"`
	UsedBy   []string            `json:"used_by"`
	For      string              `json:"for"` // who may use it
}

type sealedState struct {
	Path       string   `json:"path"`
	State      string   `json:"state"`
	Text       string   `json:"text,omitempty"`
	Recipients []string `json:"recipients"`
}

func inspectSecrets(ctx context.Context, opt options, dir string) (*inspection, error) {
	e, err := newEvaluator(slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer e.Close()
	tree := config.FSTree(os.DirFS(dir))
	cfg, err := e.Evaluate(ctx, "", tree)
	if err != nil {
		return nil, err
	}
	keys, err := opt.secretKeys()
	if err != nil {
		return nil, err
	}
	in := &inspection{Secrets: []secretState{}, Files: []sealedState{}, Errors: []findingJSON{}, keys: keys.Recipients(), tree: tree, cfg: &cfg}
	in.values = &secrets{keys: opt.secretKeys, tree: func(context.Context, pipeline.CommitID) (fs.FS, error) { return tree, nil }}
	in.values.declare(cfg)
	for i := range cfg.Secrets {
		in.secret(&cfg.Secrets[i])
	}
	if err := in.files(keys); err != nil {
		return nil, err
	}
	in.diagnostics()
	return in, nil
}

// count remembers a state.
func (in *inspection) count(state string) string {
	switch state {
	case "problem":
		in.Problems++
	case "warning":
		in.Warnings++
	}
	return state
}

func (in *inspection) secret(d *pipeline.Secret) {
	s := secretState{Name: d.Name, Declared: d.Pos.String(), From: d.Source(), State: "ok", UsedBy: in.users(d.Name), For: in.rule(d.Name)}
	_, err := in.values.Secret(d.Name)
	if err != nil {
		s.State, s.Text = "problem", err.Error()
		// What this machine lacks the server may have.
		if d.Env != "" && os.Getenv(d.Env) == "" || d.File != "" && !exists(d.File) || d.Sops != "" && in.sound(d) {
			s.State = "warning"
		}
	}
	in.count(s.State)
	in.Secrets = append(in.Secrets, s)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// sound reports whether an encrypted secret is right as far as can be seen, and lacks
// only a key here.
func (in *inspection) sound(d *pipeline.Secret) bool {
	text, err := readSmall(in.tree, d.Sops)
	if err != nil {
		return false
	}
	f, err := sops.Parse(d.Sops, text)
	return err == nil && f.Check(d.Key) == nil && !in.mine(f)
}

// mine reports whether the file says that a key here opens it.
func (in *inspection) mine(f *sops.File) bool {
	return slices.ContainsFunc(f.Recipients(), func(r string) bool { return slices.Contains(in.keys, r) })
}

// users lists the tasks, webhooks and repositories that name a secret.
func (in *inspection) users(name pipeline.SecretName) []string {
	out := []string{}
	for i := range in.cfg.Compositions {
		c := &in.cfg.Compositions[i]
		for j := range c.Tasks {
			if slices.Contains(c.Tasks[j].Secrets, name) {
				out = append(out, fmt.Sprintf("%s: task %s", c.Name, c.Tasks[j].Name))
			}
		}
		for _, t := range c.Triggers {
			if t.Webhook != nil && t.Webhook.Secret == name {
				out = append(out, fmt.Sprintf("%s: webhook %s", c.Name, t.Webhook.ID))
			}
		}
	}
	for _, r := range in.cfg.Repositories {
		if r.Credentials == name {
			out = append(out, "repository "+r.Name)
		}
	}
	return out
}

// rule says who may use a secret.
func (in *inspection) rule(name pipeline.SecretName) string {
	who, where := "every composition", "on the default branch"
	var pos pipeline.Position
	for _, r := range in.cfg.Policy.Secrets {
		if r.Secret != name {
			continue
		}
		pos = r.Pos
		if len(r.Compositions) > 0 {
			who = "only " + strings.Join(r.Compositions, ", ")
		}
		if len(r.Branches) > 0 {
			where = "on " + strings.Join(r.Branches, ", ")
		}
		if r.Repositories != nil {
			where += ", of this repository" + also(r.Repositories)
		}
	}
	if pos.File != "" {
		return fmt.Sprintf("%s, %s (%s)", who, where, pos)
	}
	return who + ", " + where
}

func also(repositories []string) string {
	if len(repositories) == 0 {
		return " alone"
	}
	return " and of " + strings.Join(repositories, ", ")
}

// files looks at every encrypted file: those that secrets are read from, and those whose
// names say that they are one.
func (in *inspection) files(keys sops.Keys) error {
	var paths []string
	for _, d := range in.cfg.Secrets {
		if d.Sops != "" {
			paths = append(paths, d.Sops)
		}
	}
	err := fs.WalkDir(in.tree, ".", func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && p != "." && (strings.HasPrefix(e.Name(), ".") || e.Name() == "cue.mod"):
			return fs.SkipDir
		case e.Type().IsRegular() && strings.Contains(e.Name(), ".sops.") && !strings.HasPrefix(e.Name(), ".") && sops.Supported(p):
			paths = append(paths, p)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for encrypted files: %w", err)
	}
	rules, err := in.rules()
	if err != nil {
		return err
	}
	for _, p := range slices.Compact(slices.Sorted(slices.Values(paths))) {
		if f := in.file(p, keys, rules); f != nil {
			in.count(f.State)
			in.Files = append(in.Files, *f)
		}
	}
	return nil
}

// rules reads .sops.yaml; nil when there is none, or none that can be read, which the
// diagnostics say.
func (in *inspection) rules() (*sops.Rules, error) {
	if _, err := fs.Stat(in.tree, sops.RulesFile); err != nil {
		return nil, nil
	}
	text, err := readSmall(in.tree, sops.RulesFile)
	if err != nil {
		return nil, err
	}
	rules, _ := sops.ParseRules(text)
	return rules, nil
}

// file judges one file; nil when there is none, which is said of its secrets.
func (in *inspection) file(p string, keys sops.Keys, rules *sops.Rules) *sealedState {
	text, err := readSmall(in.tree, p)
	if err != nil {
		return nil
	}
	s := &sealedState{Path: p, State: "ok", Recipients: []string{}}
	f, err := sops.Parse(p, text)
	if err == nil {
		s.Recipients = f.Recipients()
		err = in.opens(f, keys)
	}
	if err == nil && rules != nil {
		if strange := rules.Strangers(p, s.Recipients); len(strange) > 0 {
			err = fault.New(fault.Invalid, "it is encrypted to %s too, whom %s does not name", strings.Join(strange, ", "), sops.RulesFile)
		}
	}
	switch {
	case err != nil:
		s.State, s.Text = "problem", err.Error()
	case !in.mine(f):
		s.State, s.Text = "warning", "not opened: none of the keys here is one of its recipients'"
	}
	return s
}

func (in *inspection) opens(f *sops.File, keys sops.Keys) error {
	if !in.mine(f) {
		return nil
	}
	o, err := f.Open(keys)
	if err != nil {
		return err
	}
	return o.CheckPath()
}

// diagnostics adds what vet says of secrets and was not found otherwise.
func (in *inspection) diagnostics() {
	others := 0
	for _, d := range in.cfg.Diagnostics {
		switch {
		case d.Severity != pipeline.SeverityError || d.Code == "RC0310" || d.Code == "RC0311":
		case strings.Contains(d.Message, "secret"):
			in.count("problem")
			in.Errors = append(in.Errors, findingJSON{What: d.Code, State: "problem", Text: d.Pos.String() + ": " + d.Message})
		default:
			others++
		}
	}
	if others > 0 {
		in.count("warning")
		in.Errors = append(in.Errors, findingJSON{What: "configuration", State: "warning", Text: counted(others, "error") + " that may hide more; see: reconciler vet"})
	}
}

func markOf(state string) string {
	switch state {
	case "ok":
		return "✓"
	case "warning":
		return "!"
	}
	return "✗"
}

func (s *secretState) print(w io.Writer) {
	fmt.Fprintf(w, "%s %s\n", markOf(s.State), s.Name)
	if s.From != "" {
		fmt.Fprintf(w, "    from  %s\n    for   %s\n", oneLine(s.From), oneLine(s.For))
		fmt.Fprintf(w, "    used  %s\n", oneLine(cmp.Or(strings.Join(s.UsedBy, "; "), "by nothing")))
	}
	if s.Text != "" {
		fmt.Fprintf(w, "    %s\n", oneLine(s.Text))
	}
}

func (in *inspection) print(w io.Writer) {
	for _, s := range in.Secrets {
		s.print(w)
	}
	for _, f := range in.Files {
		fmt.Fprintf(w, "%s %s\n    to    %s\n", markOf(f.State), filepath.FromSlash(f.Path), oneLine(cmp.Or(strings.Join(f.Recipients, ", "), "nobody")))
		if f.Text != "" {
			fmt.Fprintf(w, "    %s\n", oneLine(f.Text))
		}
	}
	for _, e := range in.Errors {
		fmt.Fprintf(w, "%s %s\n", markOf(e.State), oneLine(e.Text))
	}
	fmt.Fprintf(w, "\n%s, %s: %s, %s\n", counted(len(in.Secrets), "secret"), counted(len(in.Files), "encrypted file"), counted(in.Problems, "problem"), counted(in.Warnings, "warning"))
}
