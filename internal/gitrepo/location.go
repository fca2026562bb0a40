package gitrepo

import (
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	formatcfg "github.com/go-git/go-git/v5/plumbing/format/config"

	"github.com/maestro-cd/maestro/internal/fault"
)

// location is a checked address: exactly one of path and url is set.
type location struct {
	text string
	path string
	url  *url.URL
}

func (l location) String() string { return l.text }
func (l location) remote() bool   { return l.url != nil }

// parseLocation accepts the few forms of address that cannot make anything run
// or send credentials where they do not belong. The refusal of a URL with
// credentials must not repeat it.
func parseLocation(s string) (location, error) {
	refuse := func(why, next string) (location, error) {
		return location{}, fault.New(fault.Invalid, "repository address %s: %s; %s", quote(s), why, next)
	}
	if strings.Contains(s, "://") {
		if u, err := url.Parse(s); err != nil || u.User != nil || strings.Contains(u.Host, "@") {
			return location{}, fault.New(fault.Invalid,
				"repository address: it is malformed or holds credentials; give user and token apart from the address")
		}
	}
	for _, c := range s {
		if c < 0x20 || c == 0x7f {
			return refuse("it holds a control character", "remove it")
		}
	}
	switch {
	case s == "":
		return refuse("it is empty", "give a path or an https:// URL")
	case strings.HasPrefix(s, "-"):
		return refuse("it begins with a dash", "write ./ before a path that does")
	case !strings.Contains(s, "://"):
		if i := strings.IndexByte(s, ':'); i > 0 && !strings.ContainsAny(s[:i], `/\`) && !isDir(s) {
			return refuse("ssh addresses are not supported", "use https:// with a token")
		}
		path, err := filepath.Abs(s)
		if err != nil {
			return location{}, fault.New(fault.Invalid, "repository address %s: %w", quote(s), err)
		}
		return location{text: s, path: path}, nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return refuse("it is not a URL", "check its spelling")
	}
	host := u.Hostname()
	switch {
	case u.RawQuery != "" || u.Fragment != "" || u.Opaque != "":
		return refuse("it has a query or a fragment", "give the plain clone URL")
	case strings.HasPrefix(host, "-"):
		return refuse("its host begins with a dash", "check its spelling")
	case u.Scheme == "file":
		if host != "" && host != "localhost" {
			return refuse("a file:// URL names no other machine", "write file:///path")
		}
		if !filepath.IsAbs(u.Path) {
			return refuse("a file:// URL needs an absolute path", "write file:///path")
		}
		return location{text: s, path: filepath.Clean(u.Path)}, nil
	case u.Scheme != "https" && u.Scheme != "http":
		return refuse("the scheme "+quote(u.Scheme)+" is not supported", "use a path, file:// or https://")
	case host == "":
		return refuse("it names no host", "check its spelling")
	case u.Scheme == "http" && !isLoopback(host):
		return refuse("http:// would send content and credentials unprotected", "use https://")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	return location{text: s, url: u}, nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func isDir(p string) bool {
	fi, err := os.Stat(p)
	return err == nil && fi.IsDir()
}

// layout is where a repository keeps its parts. They differ only in a linked
// worktree, whose own folder has HEAD and little else.
type layout struct {
	git    string // HEAD
	common string // refs, packed-refs, objects, config
}

// findLayout finds the repository at path: bare, or the .git in it.
func findLayout(path string) (layout, error) {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return layout{}, fault.New(fault.NotFound, "open repository %s: there is no such folder; check the path, or make one with: git init --bare %s", path, path)
	case err != nil:
		return layout{}, fault.New(fault.Unavailable, "open repository %s: %w; check the permissions of the folder", path, err)
	case !fi.IsDir():
		return layout{}, fault.New(fault.Invalid, "open repository %s: it is a file, not a folder; give the folder of a Git repository", path)
	}
	git := path
	if dot := filepath.Join(path, ".git"); exists(dot) {
		if git, err = followGitFile(dot); err != nil {
			return layout{}, err
		}
	}
	l := layout{git: git, common: git}
	if b, err := os.ReadFile(filepath.Join(git, "commondir")); err == nil {
		l.common = absFrom(git, strings.TrimSpace(string(b)))
	}
	if !exists(filepath.Join(l.git, "HEAD")) || !isDir(filepath.Join(l.common, "objects")) {
		return layout{}, fault.New(fault.Invalid, "open repository %s: it is not a Git repository; give the folder that holds .git, or a bare repository", path)
	}
	return l, l.check(path)
}

// check refuses what would be misread rather than not read.
func (l layout) check(path string) error {
	f, err := os.Open(filepath.Join(l.common, "config"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.New(fault.Unavailable, "open repository %s: %w; check the permissions of its files", path, err)
	}
	defer f.Close()
	cfg := formatcfg.New()
	if err := formatcfg.NewDecoder(f).Decode(cfg); err != nil {
		return fault.New(fault.Invalid, "open repository %s: its config cannot be read: %w; try: git -C %s config --list", path, err, path)
	}
	ext := cfg.Section("extensions")
	if v := ext.Option("objectformat"); v != "" && !strings.EqualFold(v, "sha1") {
		return fault.New(fault.Invalid, "open repository %s: its object format is %s, and only sha1 can be read; make it with: git init --object-format=sha1", path, quote(v))
	}
	if v := ext.Option("refstorage"); v != "" && !strings.EqualFold(v, "files") {
		return fault.New(fault.Invalid, "open repository %s: its refs are stored as %s, and only files can be read; convert it with: git refs migrate --ref-format=files", path, quote(v))
	}
	if fi, err := os.Stat(filepath.Join(l.common, "objects", "info", "alternates")); err == nil && fi.Size() > 0 {
		return fault.New(fault.Invalid, "open repository %s: it borrows objects of another one, which is not supported; run: git -C %s repack -a -d && rm %s",
			path, path, filepath.Join(l.common, "objects", "info", "alternates"))
	}
	return nil
}

// followGitFile resolves a .git that is a file, as worktrees and submodules have.
func followGitFile(dot string) (string, error) {
	if isDir(dot) {
		return dot, nil
	}
	b, err := os.ReadFile(dot)
	if err != nil {
		return "", fault.New(fault.Unavailable, "open repository %s: %w; check its permissions", dot, err)
	}
	target, ok := strings.CutPrefix(strings.TrimSpace(string(b)), "gitdir: ")
	if !ok {
		return "", fault.New(fault.Invalid, "open repository %s: it is a file that does not name a Git folder; give the repository itself", dot)
	}
	return absFrom(filepath.Dir(dot), target), nil
}

func absFrom(base, p string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(base, p)
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return err == nil
}
