package gitrepo

import (
	"context"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Bring makes the commits at refs that Fetch does not follow readable, as those of pull
// requests, and returns where the refs point. A ref that is not there is left out. A
// commit is fetched with its whole history, within the limits of Fetch.
func (r *Repo) Bring(ctx context.Context, refs []pipeline.Ref) (map[pipeline.Ref]pipeline.CommitID, error) {
	out := map[pipeline.Ref]pipeline.CommitID{}
	if r.remote == nil {
		for _, ref := range refs {
			if !validRef(string(ref)) {
				continue
			}
			h, err := readRef(r.layout.common, string(ref))
			if err != nil {
				return nil, err
			}
			if !h.IsZero() {
				out[ref] = pipeline.CommitID(h.String())
			}
		}
		r.store.refresh()
		return out, nil
	}
	turn, err := r.begin(ctx, r.fetching)
	if err != nil {
		return nil, err
	}
	defer turn()
	ctx, cancel := context.WithTimeout(ctx, r.limits.Fetch)
	defer cancel()
	t := r.remote.talk()
	adv, session, err := t.ask(ctx)
	if err != nil {
		return nil, err
	}
	var wants []plumbing.Hash
	for _, ref := range refs {
		h, there := adv.all[string(ref)]
		if !there || !validRef(string(ref)) {
			continue
		}
		out[ref] = pipeline.CommitID(h.String())
		if !r.store.has(h) {
			wants = append(wants, h)
		}
	}
	if len(wants) == 0 {
		return out, nil
	}
	if err := r.fetchObjects(ctx, t, session, wants); err != nil {
		return nil, err
	}
	for _, h := range wants {
		if !r.store.has(h) {
			return nil, fault.New(fault.Unavailable, "fetch from %s: object %s did not come", r, h)
		}
	}
	return out, nil
}
