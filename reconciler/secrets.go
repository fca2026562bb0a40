package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/durable"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/sops"
)

func newSecrets() *cobra.Command {
	cmd := &cobra.Command{
		Use: "secrets", Short: "Check and audit secrets, edit encrypted ones, or make a key", Args: cobra.NoArgs,
		Long: `Secrets are declared in folders secrets/ of the ops repository: where the reconciler
reads each, from its environment, from a file, or from an encrypted file of the
repository. Encrypted files are those of the program sops, for age keys: what these
commands write sops can read, and the other way round.

Private keys are looked for as sops does: --secrets-key-file, SOPS_AGE_KEY,
SOPS_AGE_KEY_FILE, and sops/age/keys.txt in your configuration folder.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSecretsCheck(), newSecretsAudit(), newSecretsEdit(), newKeygen())
	return cmd
}

func newKeygen() *cobra.Command {
	return &cobra.Command{
		Use: "keygen FILE", Short: "Make an age key", Args: cobra.ExactArgs(1),
		Long: `Make an age key: the private one goes into FILE, which must not be there yet, and the
public one, to which files are encrypted, is printed. Give the file to the reconciler,
as --secrets-key-file, and keep a copy where you keep what must not be lost: without the
key nobody can read what was encrypted to it.

A key that others have seen cannot be taken back: make another, encrypt the files to it,
and replace the values.`,
		Example: "  reconciler secrets keygen /etc/maestro/secrets.key",
		RunE: func(cmd *cobra.Command, args []string) error {
			private, to, err := sops.NewKey()
			if err != nil {
				return err
			}
			f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if errors.Is(err, fs.ErrExist) {
				return fault.New(fault.Conflict, "%s is there already; nothing was changed. Name a new file", args[0])
			}
			if err != nil {
				return fault.New(fault.Invalid, "make %s: %w", args[0], err)
			}
			if err := f.Close(); err != nil {
				return fmt.Errorf("make %s: %w", args[0], err)
			}
			// A power cut must not leave less of it than the recipient that is printed.
			if err := durable.WriteFile(args[0], []byte("# public key: "+to+"\n"+private+"\n"), 0o600); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), to)
			return nil
		},
	}
}
