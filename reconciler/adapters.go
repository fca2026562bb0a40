package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/maestro-cd/maestro/internal/bundle"
	"github.com/maestro-cd/maestro/internal/config"
	"github.com/maestro-cd/maestro/internal/durable"
	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/gitrepo"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/reconciler/internal/store"
)

// repository reads commits for the loop: Git objects from gitrepo, their meaning
// from config.
type repository struct {
	repo      *gitrepo.Repo
	evaluator *config.Evaluator
	bundles   *bundles
}

func (r *repository) Evaluate(ctx context.Context, id pipeline.CommitID) (pipeline.Config, error) {
	tree, err := r.repo.Tree(ctx, id)
	if err != nil {
		return pipeline.Config{}, err
	}
	cfg, err := r.evaluator.Evaluate(ctx, id, tree)
	if err != nil {
		return cfg, err
	}
	for i := range cfg.Plugins {
		if err := r.bundles.keep(&cfg.Plugins[i], tree); err != nil {
			return cfg, err
		}
	}
	return cfg, nil
}

func (r *repository) Describe(ctx context.Context, id pipeline.CommitID) (author, subject string, err error) {
	c, err := r.repo.Commit(ctx, id)
	return c.AuthorName, c.Subject, err
}

func (r *repository) ChangedPaths(ctx context.Context, base, head pipeline.CommitID) ([]string, bool, error) {
	c, err := r.repo.ChangedPaths(ctx, base, head)
	if fault.Is(err, fault.NotFound) {
		return nil, false, nil // the base is gone, as after a force-push
	}
	return c.Paths, !c.Truncated, err
}

func (r *repository) Fill(
	ctx context.Context, of *pipeline.Composition, run *pipeline.Run, b pipeline.Blank, outputs map[pipeline.TaskName]json.RawMessage,
) (json.RawMessage, error) {
	tree, err := r.repo.Tree(ctx, run.Commit)
	if err != nil {
		return nil, err
	}
	req := config.FillRequest{
		Tree: tree, Unit: of.Unit, Composition: of.Name, Blank: b,
		Event: run.Event, Params: run.Params, Outputs: outputs,
	}
	if t := of.Task(b.Task); t != nil {
		req.Bindings, req.Secrets, req.Each = t.Bindings, t.Secrets, t.Each
	}
	return r.evaluator.Fill(ctx, req)
}

// hookSecret returns the secret of the webhook in force under the id. One that two
// triggers share has one secret, or its configuration would not be in force.
func (s *server) hookSecret(id string) (string, error) {
	live := s.commits.Live()
	if live == nil {
		return "", fault.New(fault.Unavailable, "no configuration is in force yet")
	}
	for i := range live.Compositions {
		for _, t := range live.Compositions[i].Triggers {
			if t.Webhook != nil && t.Webhook.ID == id {
				return s.secrets.Secret(t.Webhook.Secret)
			}
		}
	}
	return "", fault.New(fault.NotFound, "no trigger in force is of webhook %s", id)
}

// bundles keeps the folders of plugins as tar files by tree digest, and what the
// URLs in manifests name by SHA-256. All of it can be made again from Git and the
// network, so it may be lost.
type bundles struct {
	dir  string
	log  *slog.Logger
	http *http.Client
	mu   sync.Mutex // one packing at a time
	// downloads are one at a time for each archive. They may take long, and nothing
	// else waits for them: commits of any branch name what is downloaded.
	downloads singleflight.Group
}

// mostURLs bounds the addresses that are kept of one archive.
const mostURLs = 20

// maxArchive bounds what a program's URL may deliver.
const maxArchive = 1 << 30

func openBundles(data string, log *slog.Logger) (*bundles, error) {
	b := &bundles{dir: filepath.Join(data, "plugins"), log: log, http: &http.Client{
		Timeout:   10 * time.Minute,
		Transport: archiveTransport(),
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			const most = 3
			if len(via) > most {
				return fmt.Errorf("more than %d redirects", most)
			}
			return checkArchiveURL(r.URL)
		},
	}}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the plugin folder: %w", err)
	}
	return b, nil
}

// checkArchiveURL allows https, and plain http to this machine only.
func checkArchiveURL(u *url.URL) error {
	local := u.Hostname() == "127.0.0.1" || u.Hostname() == "::1" || u.Hostname() == "localhost"
	if u.Scheme == "https" || u.Scheme == "http" && local {
		return nil
	}
	return fault.New(fault.Invalid, "%s is not an https URL", u.Redacted())
}

// archiveTransport looks at addresses when a connection is made, so that no name and no
// redirect leads past it.
func archiveTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: 30 * time.Second, Control: refuseMetadata}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 90 * time.Second, MaxIdleConns: 10,
	}
}

// metadata are where clouds tell a machine its credentials, beside link-local addresses.
var metadata = []netip.Addr{netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("100.100.100.200")}

// refuseMetadata lets nothing be fetched from where no program can be, but a machine's
// credentials. Other private addresses may well have programs.
func refuseMetadata(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	ip := at.Addr().Unmap().WithZone("")
	if err != nil || ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() || slices.Contains(metadata, ip) {
		return fault.New(fault.Invalid, "%s is no address of a program", address)
	}
	return nil
}

func (b *bundles) path(tree pipeline.Digest) string {
	return filepath.Join(b.dir, strings.ReplaceAll(string(tree), ":", "-")+".tar")
}

// keep packs a plugin's folder once, so that agents get it whatever becomes of the
// commit, and remembers where its archives come from.
func (b *bundles) keep(p *pipeline.Plugin, tree fs.FS) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, prog := range p.Programs {
		if prog.URL != "" && isHex(prog.SHA256, sha256.Size) {
			if err := b.remember(prog.SHA256, prog.URL); err != nil {
				return fmt.Errorf("remember archive of plugin %s: %w", p.Name, err)
			}
		}
	}
	if _, err := os.Stat(b.path(p.Tree)); err == nil {
		return nil
	}
	var folder fs.FS
	var err error
	if _, builtin := strings.CutPrefix(p.Dir, "builtin:"); builtin {
		folder, _, err = config.BuiltinPlugin(p.Name)
	} else {
		folder, err = fs.Sub(tree, p.Dir)
	}
	if err != nil {
		return fmt.Errorf("plugin %s: %w", p.Name, err)
	}
	var buf strings.Builder
	if err := bundle.WriteTar(&buf, folder); err != nil {
		return fault.New(fault.Invalid, "pack plugin %s: %w", p.Name, err)
	}
	return durable.WriteFile(b.path(p.Tree), []byte(buf.String()), 0o600)
}

// remember puts an address of an archive before those that other manifests gave: one of
// them that does not answer must not take the others' place.
func (b *bundles) remember(sum, from string) error {
	old, err := b.addresses(sum)
	if err != nil || len(old) > 0 && old[0] == from || strings.ContainsAny(from, "\r\n") {
		return err
	}
	all := append([]string{from}, slices.DeleteFunc(old, func(o string) bool { return o == from })...)
	return durable.WriteFile(filepath.Join(b.dir, sum+".url"), []byte(strings.Join(all[:min(mostURLs, len(all))], "\n")), 0o600)
}

// addresses are those of an archive, the one that was given last first.
func (b *bundles) addresses(sum string) ([]string, error) {
	raw, err := os.ReadFile(filepath.Join(b.dir, sum+".url"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.FieldsFunc(string(raw), func(c rune) bool { return c == '\n' }), err
}

func isHex(s string, bytes int) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && len(raw) == bytes
}

// Plugin writes the tar of a plugin's folder.
func (b *bundles) Plugin(_ context.Context, tree pipeline.Digest, w io.Writer) error {
	hash, ok := strings.CutPrefix(string(tree), "git:")
	if !ok || !isHex(hash, 20) {
		return fault.New(fault.NotFound, "no plugin folder %.80q", tree)
	}
	f, err := os.Open(b.path(tree))
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "no plugin folder %s", tree)
	}
	if err != nil {
		return fmt.Errorf("open plugin folder %s: %w", tree, err)
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// Archive opens what a manifest's URL names, fetching it when it is not here yet.
func (b *bundles) Archive(ctx context.Context, sum string) (io.ReadCloser, error) {
	if !isHex(sum, sha256.Size) {
		return nil, fault.New(fault.NotFound, "no archive %.80q", sum)
	}
	path := filepath.Join(b.dir, sum+".archive")
	_, err, _ := b.downloads.Do(sum, func() (any, error) {
		if _, err := os.Stat(path); err == nil {
			return nil, nil
		}
		from, err := b.addresses(sum)
		if err == nil && len(from) == 0 {
			err = fault.New(fault.NotFound, "no archive %s: no manifest names it", sum)
		}
		for _, u := range from {
			if err = b.download(ctx, u, sum, path); err == nil {
				break
			}
		}
		return nil, err
	})
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

func (b *bundles) download(ctx context.Context, from, sum, path string) error {
	u, err := url.Parse(from)
	if err != nil {
		return fault.New(fault.Invalid, "archive URL: %w", err)
	}
	if err := checkArchiveURL(u); err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return fault.New(fault.Invalid, "archive URL: %w", err)
	}
	resp, err := b.http.Do(req)
	if err != nil {
		return fault.New(fault.Unavailable, "fetch archive: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fault.New(fault.Unavailable, "fetch archive %s: %s", u.Redacted(), resp.Status)
	}
	tmp, err := os.CreateTemp(b.dir, "download-*")
	if err != nil {
		return fmt.Errorf("fetch archive: %w", err)
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(tmp, h), io.LimitReader(resp.Body, maxArchive+1))
	if err != nil {
		return fault.New(fault.Unavailable, "fetch archive %s: %w", u.Redacted(), err)
	}
	if n > maxArchive {
		return fault.New(fault.Invalid, "archive %s is larger than %d bytes", u.Redacted(), maxArchive)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return fault.New(fault.Invalid, "archive %s has SHA-256 %s, the manifest says %s", u.Redacted(), got, sum)
	}
	if err := tmp.Sync(); err != nil {
		return fmt.Errorf("keep archive: %w", err)
	}
	return os.Rename(tmp.Name(), path)
}

// logLengths shows the loop as much of the logs as it needs.
type logLengths struct{ *store.Logs }

func (l logLengths) Received(ctx context.Context, id pipeline.AttemptID) (int64, error) {
	n, err := l.Length(ctx, id)
	return n.Received, err
}
