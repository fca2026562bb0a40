package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// options are those of a server. Each flag has an environment variable of the same
// name, RECONCILER_ and upper case; a flag wins.
type options struct {
	repo, branch    string
	gitUser         string
	gitTokenFile    string
	secretsKeyFile  string
	allowSource     []string
	data            string
	listen, intake  string
	public          string
	forge           string
	githubRepo      string
	githubAPI       string
	githubTokenFile string
	githubApp       int64
	githubKeyFile   string
	githubHookFile  string
	poll            time.Duration
	backupEvery     time.Duration // 0 makes none
	backupKeep      int
	backupDir       string
	lowWater        room // 0 is max(512 MiB, 2%)
	logFormat       string
	verbose         bool
	runTip          bool
	unsignedReviews bool
	lenientPorts    bool // take another port when one is in use
	personal        bool // the age keys of whoever runs it will do
	// only is what exec runs; nil runs what the triggers say.
	only *only
}

func (o *options) flags(f *pflag.FlagSet) {
	f.StringVar(&o.repo, "repo", "", "the ops repository: a path, file:// or https:// (required)")
	f.StringVar(&o.branch, "branch", "main", "the branch that holds the desired state")
	f.StringVar(&o.gitUser, "git-user", "maestro", "user name for an https:// repository")
	f.StringVar(&o.gitTokenFile, "git-token-file", "", "file with the password or token for an https:// repository")
	o.secretsFlag(f)
	f.StringSliceVar(&o.allowSource, "allow-source", nil, "a folder, or the beginning of an address, below which source repositories may be; for more than one give it again. Without it they are at public https:// addresses")
	f.StringVar(&o.data, "data", defaultData(), "folder for the record, logs and caches")
	f.StringVar(&o.listen, "listen", "127.0.0.1:8420", "address of the read-only web view")
	f.StringVar(&o.intake, "intake", "127.0.0.1:8421", "address that agents connect to and webhooks are posted to")
	f.StringVar(&o.public, "public-url", "", "address of the web view as people reach it, for links; without it statuses and comments have none")
	f.StringVar(&o.forge, "forge", "local", "where statuses go: local (Git notes in the repository), github or none")
	f.StringVar(&o.githubRepo, "github-repo", "", "OWNER/NAME, with --forge github")
	f.StringVar(&o.githubAPI, "github-api", "https://api.github.com/", "base of GitHub's API")
	f.StringVar(&o.githubTokenFile, "github-token-file", "", "file with a token that may write commit statuses, pull requests and issues of the repository")
	f.Int64Var(&o.githubApp, "github-app", 0, "number of a GitHub App that is installed for the repository, instead of a token")
	f.StringVar(&o.githubKeyFile, "github-app-key-file", "", "file with the private key of the GitHub App")
	f.StringVar(&o.githubHookFile, "github-webhook-secret-file", "", "file with the secret of GitHub's webhook, which is posted to /github of the intake")
	f.DurationVar(&o.poll, "poll", 30*time.Second, "how often the repository is looked at without a hint")
	f.BoolVar(&o.unsignedReviews, "unsigned-reviews", false, "let reviews and requests count that no key proves: anybody who may push can then be anybody")
	f.DurationVar(&o.backupEvery, "backup-every", defaultBackupEvery, "how old the newest backup may be when something has happened since; 0 makes none")
	f.IntVar(&o.backupKeep, "backup-keep", defaultBackupKeep, "how many of the backups that the server makes are kept")
	f.StringVar(&o.backupDir, "backup-dir", "", "folder for them (backups, in the data folder)")
	f.Var(&o.lowWater, "low-water", "room on the disk of the data folder below which nothing is given to agents, as 2GiB (512MiB or 2%, whichever is more)")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json, on standard error")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log every step")
}

func (o *options) secretsFlag(f *pflag.FlagSet) {
	f.StringVar(&o.secretsKeyFile, "secrets-key-file", "", "file with the private age key that opens the encrypted files of the repository (SOPS_AGE_KEY, or the file that SOPS_AGE_KEY_FILE names)")
}

// fromEnvironment sets the flags that were not given from RECONCILER_… variables.
func fromEnvironment(cmd *cobra.Command, prefix string) error {
	var errs []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		name := prefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		v, ok := os.LookupEnv(name)
		if !ok || f.Changed {
			return
		}
		if err := cmd.Flags().Set(f.Name, v); err != nil {
			errs = append(errs, fmt.Sprintf("%s: %v", name, err))
		}
	})
	if len(errs) > 0 {
		return fault.New(fault.Invalid, "%s", strings.Join(errs, "; "))
	}
	return nil
}

// check finds everything that is wrong with the options.
func (o *options) check() error {
	var wrong []string
	if o.repo == "" {
		wrong = append(wrong, "--repo is missing: name the ops repository, as --repo /srv/ops.git (make one with: reconciler init)")
	}
	if o.forge != "local" && o.forge != "github" && o.forge != "none" {
		wrong = append(wrong, fmt.Sprintf("--forge %q is not local, github or none", o.forge))
	}
	if o.forge == "github" {
		if owner, name, ok := strings.Cut(o.githubRepo, "/"); !ok || owner == "" || name == "" || strings.Contains(name, "/") {
			wrong = append(wrong, "--github-repo must be OWNER/NAME")
		}
		if (o.githubApp != 0) != (o.githubKeyFile != "") {
			wrong = append(wrong, "--github-app and --github-app-key-file belong together")
		}
		if o.githubTokenFile == "" && o.githubApp == 0 {
			wrong = append(wrong, "--github-token-file is missing: a token for "+o.githubRepo+"; or use a GitHub App, with --github-app and --github-app-key-file")
		}
	}
	if o.public != "" {
		if u, err := url.Parse(o.public); err != nil || u.Scheme == "" || u.Host == "" {
			wrong = append(wrong, fmt.Sprintf("--public-url %q is not a URL", o.public))
		}
	}
	for _, s := range o.allowSource {
		if place(s) == nil {
			wrong = append(wrong, fmt.Sprintf("--allow-source %q is neither an absolute path nor the beginning of a URL", s))
		}
	}
	if o.poll < time.Second {
		wrong = append(wrong, "--poll must be at least 1s")
	}
	if o.backupEvery < 0 || o.backupKeep < 1 {
		wrong = append(wrong, "--backup-every must not be negative, and --backup-keep at least 1")
	}
	if o.logFormat != "text" && o.logFormat != "json" {
		wrong = append(wrong, fmt.Sprintf("--log-format %q is not text or json", o.logFormat))
	}
	if len(wrong) > 0 {
		return fault.New(fault.Invalid, "%s", strings.Join(wrong, "\n       "))
	}
	if o.isPath() {
		abs, err := filepath.Abs(o.repo)
		if err != nil {
			return fmt.Errorf("path of %s: %w", o.repo, err)
		}
		o.repo = abs
	}
	return nil
}

func (o *options) isPath() bool { return !strings.Contains(o.repo, "://") }

// proposals reports whether branches are proposed changes. At a forge that knows of
// pull requests they are not.
func (o *options) proposals() bool { return o.forge != "github" }

func (o *options) ref() pipeline.Ref { return pipeline.Ref("refs/heads/" + o.branch) }

func (o *options) logger(w io.Writer) *slog.Logger {
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	ho := &slog.HandlerOptions{Level: level}
	if o.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, ho))
	}
	return slog.New(slog.NewTextHandler(w, ho))
}

// defaultData follows the XDG rules for a person, and the file system hierarchy
// for a service that systemd gave a state folder.
func defaultData() string {
	if d := os.Getenv("STATE_DIRECTORY"); d != "" {
		return d
	}
	if d := os.Getenv("XDG_STATE_HOME"); d != "" {
		return filepath.Join(d, "maestro", "reconciler")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "maestro-data"
	}
	return filepath.Join(home, ".local", "state", "maestro", "reconciler")
}

// secretFile reads a file that holds one secret. It is read anew at each use, so
// that a token can be replaced without a restart.
func secretFile(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fault.New(fault.Invalid, "read %s: %w", path, err)
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", fault.New(fault.Invalid, "%s is empty", path)
	}
	return s, nil
}
