// Package gitrepo reads Git repositories: refs as they are at this moment, trees
// as io/fs, commits, changed paths and notes. It is the only package that knows
// go-git, and none of its types appear here.
//
// A repository on this machine is read where it is, without a copy and without
// the git program; one behind HTTP is fetched into a bare mirror that is a mere
// cache and may be deleted whenever no process uses it. Nothing is ever checked
// out, no submodule, hook, filter or LFS server is followed.
//
// What comes out of a repository was written by anyone who may push. Names,
// sizes, counts and texts are therefore checked or cut here, and errors name the
// path. The package decides nothing: which refs trigger what is for others.
package gitrepo

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Options says which repository to open, and how.
type Options struct {
	// URL is a path, file://, https://, or http:// to this machine.
	URL string
	// Dir is where the mirror of a repository behind HTTP is kept. One process
	// at a time may use it. Unused for a repository on this machine.
	Dir string
	// Credentials returns what to log in with; it is asked anew for each
	// conversation, so that tokens may be short-lived. nil or two empty strings
	// mean no login. They are sent to URL's scheme, host and port only.
	Credentials func() (user, secret string)
	// Limits bounds what a repository may cost; zero fields take their default.
	Limits Limits
	// Log receives what nobody asked about; nil discards it.
	Log *slog.Logger
	// Transport carries the requests; nil is a transport with timeouts.
	Transport http.RoundTripper
	// Public refuses a repository that is no public https:// address: a path, http://,
	// and a host that turns out to be this machine or one of a private network, however
	// its name was spelled or resolved. No proxy of the environment is used.
	Public bool
}

// Limits bounds what one repository may cost. A zero field is its default.
type Limits struct {
	Blob        int64         // bytes of a file that may be read; 1 MiB
	Refs        int           // branches and tags; 50,000
	Own         int           // refs of Maestro's own; 20,000
	Entries     int           // files and directories looked at in one tree; 200,000
	Changed     int           // paths that ChangedPaths returns; 10,000
	PackBytes   int64         // bytes of one fetch; 1 GiB
	PackObjects int           // objects of one fetch; 5,000,000
	Object      int64         // bytes of one fetched object; 256 MiB
	Fetch       time.Duration // duration of one conversation; 10 min
}

func (l Limits) withDefaults() Limits {
	def := func(p *int64, v int64) {
		if *p <= 0 {
			*p = v
		}
	}
	defInt := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&l.Blob, 1<<20)
	defInt(&l.Refs, 50_000)
	defInt(&l.Own, 20_000)
	defInt(&l.Entries, 200_000)
	defInt(&l.Changed, 10_000)
	def(&l.PackBytes, 1<<30)
	defInt(&l.PackObjects, 5_000_000)
	def(&l.Object, 256<<20)
	if l.Fetch <= 0 {
		l.Fetch = 10 * time.Minute
	}
	return l
}

// Repo is an open repository. Its methods may be called by several goroutines.
type Repo struct {
	// Immutable after Open.
	where  location
	limits Limits
	log    *slog.Logger
	layout layout // of the repository itself, or of the mirror
	remote *remote
	store  *objects
	trees  treeCache

	// fetching admits one conversation with the repository at a time, noting one
	// writer of notes. Channels, so that waiting ends with the caller's context.
	fetching, noting chan struct{}

	mu     sync.Mutex
	peeled map[plumbing.Hash]plumbing.Hash // guarded by mu: tag objects of the last Fetch and their commits
}

// Open opens the repository. For one on this machine it checks that it is there
// (fault.NotFound) and a repository that can be read (fault.Invalid); for one
// behind HTTP it prepares the mirror and asks the network nothing. A URL that is
// refused is fault.Invalid.
func Open(ctx context.Context, o Options) (*Repo, error) {
	where, err := parseLocation(o.URL)
	if err != nil {
		return nil, err
	}
	if o.Public && (!where.remote() || where.url.Scheme != "https") {
		return nil, fault.New(fault.Invalid, "open repository %s: it is no https:// address, and may not be read from here", where)
	}
	r := &Repo{
		where:    where,
		limits:   o.Limits.withDefaults(),
		log:      o.Log,
		fetching: make(chan struct{}, 1),
		noting:   make(chan struct{}, 1),
		peeled:   map[plumbing.Hash]plumbing.Hash{},
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if where.remote() {
		if o.Dir == "" {
			return nil, fault.New(fault.Invalid, "open repository %s: no folder for its mirror is given", where)
		}
		if r.layout, err = openMirror(o.Dir, where.String()); err != nil {
			return nil, err
		}
		r.remote = newRemote(where, o, r.limits)
	} else if r.layout, err = findLayout(where.path); err != nil {
		return nil, err
	}
	r.store = newObjects(r.layout.common)
	return r, ctx.Err()
}

// Reach reports whether the repository can be read now, without bringing in what it
// has. Errors as of Fetch.
func (r *Repo) Reach(ctx context.Context) error {
	if r.remote == nil {
		_, err := findLayout(r.where.path)
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, r.limits.Fetch)
	defer cancel()
	_, _, err := r.remote.talk().ask(ctx)
	return err
}

// Close frees file handles. The Repo must not be used afterwards.
func (r *Repo) Close() error {
	if r.remote != nil {
		r.remote.close()
	}
	return r.store.close()
}

// String returns the repository's address as its owner wrote it; it never holds
// credentials.
func (r *Repo) String() string { return r.where.String() }

// WatchDirs returns the folders in which Git notes that HEAD or a ref moved, for
// a repository on this machine; nothing for one behind HTTP. The first is the
// folder of HEAD.
func (r *Repo) WatchDirs() []string {
	if r.where.remote() {
		return nil
	}
	if r.layout.git == r.layout.common {
		return []string{r.layout.git}
	}
	return []string{r.layout.git, r.layout.common}
}

// begin waits for a turn; done gives it back.
func (r *Repo) begin(ctx context.Context, turn chan struct{}) (done func(), err error) {
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		return nil, fault.New(fault.Unavailable, "wait for repository %s: %w", r, context.Cause(ctx))
	}
}

// parseID turns a commit id into an object name.
func parseID(id pipeline.CommitID) (plumbing.Hash, error) {
	if !isHex40(string(id)) {
		return plumbing.ZeroHash, fault.New(fault.Invalid, "%s is not a commit id: 40 lower-case hexadecimal characters are needed", quote(string(id)))
	}
	return plumbing.NewHash(string(id)), nil
}

func isHex40(s string) bool {
	if len(s) != 40 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
