package gitrepo

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/transport"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// fetchRemote asks for the refs and fetches what the mirror lacks. A mirror that
// turns out damaged, as after a power loss, is emptied and filled once more.
func (r *Repo) fetchRemote(ctx context.Context) (Refs, error) {
	ctx, cancel := context.WithTimeout(ctx, r.limits.Fetch)
	defer cancel()
	refs, err := r.fetchOnce(ctx)
	if errors.Is(err, errCorrupt) || errors.Is(err, errMissing) {
		r.log.Warn("mirror is damaged and is filled anew", "repository", r.String(), "err", err)
		_ = r.store.close()
		if err := emptyMirror(r.layout.git); err != nil {
			return Refs{}, err
		}
		refs, err = r.fetchOnce(ctx)
	}
	return refs, err
}

func (r *Repo) fetchOnce(ctx context.Context) (Refs, error) {
	t := r.remote.talk()
	adv, session, err := t.ask(ctx)
	if err != nil {
		return Refs{}, err
	}
	raw, err := r.wanted(adv)
	if err != nil {
		return Refs{}, err
	}
	var wants []plumbing.Hash
	asked := map[plumbing.Hash]bool{}
	for _, ref := range raw {
		if !asked[ref.hash] && !r.store.has(ref.hash) {
			wants = append(wants, ref.hash)
		}
		asked[ref.hash] = true
	}
	if len(wants) > 0 {
		if err := r.fetchObjects(ctx, t, session, wants); err != nil {
			return Refs{}, err
		}
		for _, h := range wants {
			// Any kind and size will do; whether it is intact is the question.
			if _, _, err := r.store.readAny(h, maxCommitBytes); err != nil && !errors.Is(err, errTooLarge) {
				return Refs{}, fault.New(fault.Unavailable, "check what was fetched from %s: %w", r, err)
			}
		}
	}
	refs := Refs{Head: adv.head, Tips: make(map[pipeline.Ref]pipeline.CommitID, len(raw))}
	refs.Own, refs.OwnTruncated = r.ownRemote(adv)
	if err := r.peelInto(ctx, refs.Tips, raw); err != nil {
		return Refs{}, err
	}
	return refs, writeMirrorRefs(r.layout.git, adv.head, raw)
}

// wanted picks branches and tags out of what the server says.
func (r *Repo) wanted(adv advertisement) (map[pipeline.Ref]rawRef, error) {
	raw := map[pipeline.Ref]rawRef{}
	for name, h := range adv.all {
		if !inSpaces(name, watchedSpaces) || inSpaces(name, ownSpaces) || !validRef(name) {
			continue
		}
		if len(raw) >= r.limits.Refs {
			return nil, fault.New(fault.Invalid, "read refs of %s: there are more than %d branches and tags; delete those that are no longer needed", r, r.limits.Refs)
		}
		raw[pipeline.Ref(name)] = rawRef{hash: h, peeled: adv.behind[name]}
	}
	return raw, nil
}

// fetchObjects brings objects into the mirror. The pack is spooled and looked
// over before anything unpacks it.
func (r *Repo) fetchObjects(ctx context.Context, t talk, session transport.UploadPackSession, wants []plumbing.Hash) error {
	haves, err := r.haves()
	if err != nil {
		return err
	}
	body, err := t.pack(ctx, session, wants, haves)
	if err != nil {
		return err
	}
	defer body.Close()
	spool, err := os.CreateTemp(filepath.Join(r.layout.git, "tmp"), "pack-")
	if err != nil {
		return fault.New(fault.Internal, "fetch from %s: %w", r, err)
	}
	defer os.Remove(spool.Name())
	defer spool.Close()
	if _, err := io.Copy(spool, body); err != nil {
		return t.explain("fetch from", err)
	}
	if err := checkPack(ctx, spool, r.limits); err != nil {
		return fault.New(fault.KindOf(err), "fetch from %s: %w", r, err)
	}
	if err := storePack(r.layout.git, spool); err != nil {
		return fault.New(fault.Unavailable, "unpack what was fetched from %s: %s", r, t.clean(err.Error()))
	}
	r.store.refresh()
	if err := compactMirror(r.layout.git); err != nil {
		r.log.Warn("mirror cannot be compacted; it works on with many packs", "repository", r.String(), "err", err)
	}
	r.store.refresh()
	return nil
}

// mostHaves bounds what is told to the server. Tips and some generations before
// them suffice to get new objects only, even when a branch was forced back.
const mostHaves = 256

func (r *Repo) haves() ([]plumbing.Hash, error) {
	known, err := readRefs(r.layout.common, []string{"refs/"}, r.limits.Refs+mostHaves)
	if err != nil {
		return nil, err
	}
	var queue, out []plumbing.Hash
	seen := map[plumbing.Hash]bool{}
	add := func(h plumbing.Hash) {
		if !h.IsZero() && !seen[h] && len(seen) < 4*mostHaves {
			seen[h] = true
			queue = append(queue, h)
		}
	}
	for name, ref := range known {
		if strings.HasPrefix(string(name), "refs/heads/") || !ref.peeled.IsZero() {
			add(ref.hash)
		}
		add(ref.peeled)
	}
	for len(queue) > 0 && len(out) < mostHaves {
		h := queue[0]
		queue = queue[1:]
		kind, data, err := r.store.readAny(h, maxCommitBytes)
		if err != nil || kind != plumbing.CommitObject {
			continue
		}
		out = append(out, h)
		if c, err := parseCommit(data); err == nil {
			for _, p := range c.Parents {
				add(plumbing.NewHash(string(p)))
			}
		}
	}
	return out, nil
}
