package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/durable"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/sops"
)

func newSecretsEdit() *cobra.Command {
	e := editing{opt: options{personal: true}}
	cmd := &cobra.Command{
		Use: "edit FILE", Short: "Edit an encrypted file, or make one", Args: cobra.ExactArgs(1),
		Long: `Open an encrypted file in $VISUAL or $EDITOR, and encrypt it again when that ends, with
a data key of its own. The text in the clear is in a folder that only you can read, in
memory where the machine has such a place, and is removed in any case.

A file that is not there yet is made, and one in the clear is encrypted. It is encrypted
to whom it was, or else to those whom the first rule of .sops.yaml that fits names, or
--to. Somebody whom that rule does not name is not given the new values: --rekey makes
the recipients those of --to, or of the rule.

A new file has the key _path, its own path: a copy of it under another name is refused.`,
		Example: `  reconciler secrets edit secrets/prod.sops.yaml
  reconciler secrets edit secrets/prod.sops.yaml --to age1...
  reconciler secrets edit --rekey secrets/prod.sops.yaml   # no editor: to the recipients of .sops.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			// A terminal that is closed must not leave the text behind either.
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP)
			defer stop()
			e.in, e.out, e.errs = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			return e.run(ctx, args[0])
		},
	}
	e.opt.secretsFlag(cmd.Flags())
	cmd.Flags().StringSliceVar(&e.to, "to", nil, "public age key to encrypt to; for more than one give it again")
	cmd.Flags().BoolVar(&e.rekey, "rekey", false, "encrypt to the recipients of --to or .sops.yaml, whoever could open it before; opens no editor")
	return cmd
}

// editorGrace is how long an editor that was told to end may take, before the text goes
// without it.
const editorGrace = 5 * time.Second

// editing is one use of the command.
type editing struct {
	opt       options
	to        []string
	rekey     bool
	in        io.Reader
	out, errs io.Writer

	file string // where it is
	name string // its path in the repository
	keys sops.Keys
	how  sops.How
	made bool // there was none, or none that was encrypted
}

func (e *editing) run(ctx context.Context, file string) error {
	if !sops.Supported(file) {
		return fault.New(fault.Invalid, "%s is neither YAML nor JSON by its name: it has to end in .yaml, .yml or .json", file)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o777); err != nil {
		return fault.New(fault.Invalid, "make the folder of %s: %w", file, err)
	}
	root, err := e.locate(file)
	if err != nil {
		return err
	}
	if e.keys, err = e.opt.secretKeys(); err != nil {
		return err
	}
	text, err := e.open()
	if err != nil {
		return err
	}
	if err := e.recipients(root); err != nil {
		return err
	}
	if e.rekey {
		if e.made {
			return fault.New(fault.Invalid, "%s is not encrypted yet, so --rekey has nothing to do; leave it out", e.name)
		}
		return e.write(text)
	}
	return e.edit(ctx, text)
}

// locate finds the repository that the file is in, and its path there.
func (e *editing) locate(file string) (root string, err error) {
	if e.file, err = filepath.Abs(file); err != nil {
		return "", fmt.Errorf("path of %s: %w", file, err)
	}
	if root, err = moduleAbove(filepath.Dir(e.file)); err != nil {
		return "", err
	}
	rel, err := filepath.Rel(root, e.file)
	if err != nil {
		return "", fmt.Errorf("path of %s: %w", file, err)
	}
	e.name = filepath.ToSlash(rel)
	return root, nil
}

// open reads the text in the clear, or begins one.
func (e *editing) open() ([]byte, error) {
	raw, err := os.ReadFile(e.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.made = true
		return e.blank(), nil
	case err != nil:
		return nil, fault.New(fault.Invalid, "read %s: %w", e.file, err)
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		e.made = true
		return e.blank(), nil
	}
	f, err := sops.Parse(e.name, raw)
	if errors.Is(err, sops.ErrClear) {
		e.made = true
		fmt.Fprintf(e.errs, "%s is not encrypted yet. If it was ever committed, replace what it holds.\n", e.name)
		return raw, nil
	}
	if err != nil {
		return nil, err
	}
	if e.how, err = f.How(); err != nil {
		return nil, err
	}
	o, err := f.Open(e.keys)
	if err != nil {
		return nil, err
	}
	if err := o.CheckPath(); err != nil {
		return nil, err
	}
	return o.Text()
}

func (e *editing) blank() []byte {
	if path.Ext(e.name) == ".json" {
		return fmt.Appendf(nil, "{\n\t\"_path\": %q\n}\n", e.name)
	}
	return fmt.Appendf(nil, "_path: %s\n# One secret a line, as name: \"value\"\n", e.name)
}

// recipients decides to whom the file is encrypted.
func (e *editing) recipients(root string) error {
	for _, to := range e.to {
		if err := sops.CheckRecipient(to); err != nil {
			return err
		}
	}
	var rules *sops.Rules
	raw, err := os.ReadFile(filepath.Join(root, sops.RulesFile))
	if err == nil {
		rules, err = sops.ParseRules(raw)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var rule sops.How
	named := false
	if rules != nil {
		if rule, named, err = rules.For(e.name); err != nil {
			return err
		}
	}
	switch {
	case e.made && named:
		e.how = rule
	case e.rekey && named:
		e.how.Recipients = rule.Recipients
	}
	if len(e.to) > 0 && (e.made || e.rekey) {
		e.how.Recipients = e.to
	} else if len(e.to) > 0 {
		return fault.New(fault.Invalid, "%s is encrypted already; to change to whom, give --rekey with --to", e.name)
	}
	if e.rekey && len(e.to) == 0 && !named {
		return fault.New(fault.Invalid, "%s names nobody for %s; say to whom, as --to age1…", sops.RulesFile, e.name)
	}
	if len(e.how.Recipients) == 0 {
		return fault.New(fault.Invalid, "%s: to whom is it to be encrypted? Give --to age1…, the public key of the reconciler (reconciler secrets keygen makes one), or write it into %s", e.name, sops.RulesFile)
	}
	if rules != nil {
		if strange := rules.Strangers(e.name, e.how.Recipients); len(strange) > 0 {
			return fault.New(fault.Invalid, "%s is encrypted to %s, whom %s does not name: name it there, or encrypt it to those alone whom it names, with: reconciler secrets edit --rekey %s",
				e.name, strings.Join(strange, ", "), sops.RulesFile, e.name)
		}
	}
	return nil
}

// edit lets a person change the text until it can be encrypted, or give up.
func (e *editing) edit(ctx context.Context, text []byte) error {
	dir, err := e.privateFolder()
	if err != nil {
		return err
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintf(e.errs, "THE TEXT IS STILL IN %s, remove it: %v\n", dir, err)
		}
	}()
	clear := filepath.Join(dir, filepath.Base(e.file))
	if err := os.WriteFile(clear, text, 0o600); err != nil {
		return fmt.Errorf("write the text: %w", err)
	}
	answers := bufio.NewReader(e.in)
	for {
		if err := e.editor(ctx, clear); err != nil {
			return err
		}
		after, err := os.ReadFile(clear)
		if err != nil {
			return fault.New(fault.Invalid, "the editor removed the text; %s is as it was: %w", e.name, err)
		}
		if bytes.Equal(after, text) && !(e.made && len(after) > 0 && !bytes.Equal(after, e.blank())) {
			fmt.Fprintf(e.out, "%s is as it was\n", e.name)
			return nil
		}
		if err = e.write(after); !fault.Is(err, fault.Invalid) {
			return err
		}
		fmt.Fprintf(e.errs, "%v\nEnter opens the editor again, Ctrl-D gives up: ", err)
		if _, more := answers.ReadString('\n'); more != nil || ctx.Err() != nil {
			return err
		}
	}
}

// privateFolder makes a folder for the text, in memory if it can, and removes those
// that were left by commands that were killed.
func (e *editing) privateFolder() (string, error) {
	base, inMemory := memoryFolder()
	if !inMemory {
		base = os.TempDir()
		fmt.Fprintf(e.errs, "this machine has no folder in memory: the text is in %s while you edit it\n", base)
	}
	const prefix = "maestro-edit-"
	left, _ := filepath.Glob(filepath.Join(base, prefix+"*"))
	for _, dir := range left {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(dir), prefix+"%d-", &pid); err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.RemoveAll(dir) // another user's stays
		}
	}
	dir, err := os.MkdirTemp(base, fmt.Sprintf("%s%d-", prefix, os.Getpid()))
	if err != nil {
		return "", fmt.Errorf("make a folder for the text: %w", err)
	}
	return dir, nil
}

func (e *editing) editor(ctx context.Context, file string) error {
	program := os.Getenv("VISUAL")
	if program == "" {
		program = os.Getenv("EDITOR")
	}
	if program == "" {
		program = "vi"
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", program+` "$1"`, "sh", file)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = e.in, e.out, e.errs
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = editorGrace
	// It opens one file that it may read; what else the environment has is not for it.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "SOPS_AGE_KEY=") })
	err := cmd.Run()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fault.New(fault.Invalid, "the editor %q ended with %w; %s is as it was. Name another one in EDITOR", program, err, e.name)
	}
	return nil
}

// write encrypts the text, and makes sure that it can be read before it takes the place
// of what was there.
func (e *editing) write(text []byte) error {
	out, err := sops.Seal(e.name, text, e.how)
	if err != nil {
		return err
	}
	f, err := sops.Parse(e.name, out)
	if err != nil {
		return err
	}
	mine := slices.ContainsFunc(e.keys.Recipients(), func(r string) bool { return slices.Contains(e.how.Recipients, r) })
	if mine {
		o, err := f.Open(e.keys)
		if err == nil {
			err = o.CheckPath()
		}
		if err != nil {
			return err
		}
	}
	if err := durable.WriteFile(e.file, out, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(e.out, "%s is encrypted to %s\n", e.name, strings.Join(f.Recipients(), ", "))
	if !mine {
		fmt.Fprintln(e.errs, "None of your own keys is among those, so you cannot open it again.")
	}
	return nil
}
