package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/storage/memory"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// GateBranches holds the branches of Maestro's own: forges ask for branches where
// something is to be reviewed.
const GateBranches = "refs/heads/maestro-gate/"

// ownSpaces hold what people and Maestro say to each other: reviews, requests
// and gates. They are told apart from branches and tags, so that nothing in them
// can look like a push.
var ownSpaces = []string{"refs/reviews/", "refs/maestro/", GateBranches}

// writableSpaces hold all refs but notes that are ever made or removed here.
var writableSpaces = []string{"refs/maestro/", GateBranches}

// ownRefs picks Maestro's own refs; truncated when there are more than allowed.
func (r *Repo) ownLocal() (map[pipeline.Ref]string, bool, error) {
	raw, err := readRefs(r.layout.common, ownSpaces, r.limits.Own)
	truncated := errors.Is(err, errTooManyRefs)
	if err != nil && !truncated {
		return nil, false, fault.New(fault.KindOf(err), "read refs of %s: %w", r, err)
	}
	own := make(map[pipeline.Ref]string, len(raw))
	for name, ref := range raw {
		own[name] = ref.hash.String()
	}
	return own, truncated, nil
}

func (r *Repo) ownRemote(adv advertisement) (own map[pipeline.Ref]string, truncated bool) {
	own = map[pipeline.Ref]string{}
	for name, h := range adv.all {
		if !inSpaces(name, ownSpaces) || !validRef(name) {
			continue
		}
		if len(own) >= r.limits.Own {
			return own, true
		}
		own[pipeline.Ref(name)] = h.String()
	}
	return own, false
}

// Tag is what an annotated tag says. All of it comes from whoever pushed it.
type Tag struct {
	// Target is the commit that it names.
	Target pipeline.CommitID
	// When the tag says it was made, in UTC; zero for a commit.
	When time.Time
	// Message is at most 8 KiB, without the signature.
	Message string
	// Signature is armored, "" when there is none; it covers Signed.
	Signature string
	Signed    []byte
}

const (
	// maxTagBytes bounds a tag object that is read.
	maxTagBytes = 64 << 10
	// maxTagMessage bounds what is kept of its message.
	maxTagMessage = 8 << 10
)

// Tag reads the object that one of Refs.Own points at: an annotated tag of a
// commit, or a commit, which is a tag of itself that says nothing. What is
// neither, or larger than 64 KiB, is fault.Invalid; an object that is not there,
// even at the server, is fault.NotFound.
func (r *Repo) Tag(ctx context.Context, id string) (Tag, error) {
	if !isHex40(id) {
		return Tag{}, fault.New(fault.Invalid, "%s is not an object id", quote(id))
	}
	h := plumbing.NewHash(id)
	what := "read tag " + id[:12] + " of " + r.String()
	if r.remote != nil && !r.store.has(h) {
		if err := r.bring(ctx, h); err != nil {
			return Tag{}, err
		}
	}
	kind, data, err := r.store.readAny(h, maxTagBytes)
	if err != nil {
		return Tag{}, objectFault(what, err)
	}
	switch kind {
	case plumbing.CommitObject:
		return Tag{Target: pipeline.CommitID(id)}, nil
	case plumbing.TagObject:
		t, err := parseTag(data)
		if err != nil {
			return t, objectFault(what, err)
		}
		return t, nil
	}
	return Tag{}, fault.New(fault.Invalid, "%s: it is a %s, not a tag of a commit", what, kind)
}

// bring fetches one object that a ref of the server points at.
func (r *Repo) bring(ctx context.Context, h plumbing.Hash) error {
	turn, err := r.begin(ctx, r.fetching)
	if err != nil {
		return err
	}
	defer turn()
	ctx, cancel := context.WithTimeout(ctx, r.limits.Fetch)
	defer cancel()
	t := r.remote.talk()
	adv, session, err := t.ask(ctx)
	if err != nil {
		return err
	}
	for _, tip := range adv.all {
		if tip == h {
			return r.fetchObjects(ctx, t, session, []plumbing.Hash{h})
		}
	}
	return fault.New(fault.NotFound, "object %s is gone from %s", h, r)
}

func parseTag(data []byte) (Tag, error) {
	var t Tag
	head, body, _ := bytes.Cut(data, []byte("\n\n"))
	kind := ""
	for line := range strings.Lines(string(head)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch key {
		case "object":
			if t.Target != "" || !isHex40(value) {
				return t, errors.New("the tag names no object, or several")
			}
			t.Target = pipeline.CommitID(value)
		case "type":
			kind += value
		case "tagger":
			_, _, t.When = parseSignature(value)
		}
	}
	if t.Target == "" || kind != "commit" {
		return Tag{}, errors.New("the tag is not one of a commit")
	}
	message := string(body)
	if at := signatureStart(message); at >= 0 {
		t.Signature = message[at:]
		t.Signed = data[:len(data)-len(t.Signature)]
		message = message[:at]
	}
	if len(message) > maxTagMessage {
		message = message[:maxTagMessage]
	}
	t.Message = strings.ToValidUTF8(message, "\uFFFD")
	return t, nil
}

// signatureStart finds the last line that begins a signature, as git does; what
// precedes it is what was signed.
func signatureStart(message string) int {
	found := -1
	for at := 0; at < len(message); {
		if strings.HasPrefix(message[at:], "-----BEGIN SSH SIGNATURE-----") || strings.HasPrefix(message[at:], "-----BEGIN PGP SIGNATURE-----") {
			found = at
		}
		end := strings.IndexByte(message[at:], '\n')
		if end < 0 {
			break
		}
		at += end + 1
	}
	return found
}

// Draft is a commit of a few files. Its id depends on nothing else, so whoever makes
// it again gets the same.
type Draft struct {
	// Files are names without a directory, with their content.
	Files   map[string]string
	Message string
	At      time.Time
	// Onto is its parent, nil for none. It is written with it.
	Onto *Draft
}

// ID returns the id that the commit has.
func (d Draft) ID() (pipeline.CommitID, error) {
	m := maker{made: memory.NewStorage()}
	h, err := d.write(&m)
	return pipeline.CommitID(h.String()), err
}

func (d Draft) write(m *maker) (plumbing.Hash, error) {
	parent := plumbing.ZeroHash
	if d.Onto != nil {
		var err error
		if parent, err = d.Onto.write(m); err != nil {
			return parent, err
		}
	}
	var entries []entry
	for name, text := range d.Files {
		if why := suspicious(name); why != "" {
			return plumbing.ZeroHash, fault.New(fault.Invalid, "file %s: %s", quote(name), why)
		}
		blob, err := m.put(plumbing.BlobObject, []byte(text))
		if err != nil {
			return plumbing.ZeroHash, err
		}
		entries = append(entries, entry{name: name, mode: modeFile, hash: blob})
	}
	tree, err := m.put(plumbing.TreeObject, encodeTree(entries))
	if err != nil {
		return plumbing.ZeroHash, err
	}
	return m.put(plumbing.CommitObject, encodeCommit(tree, parent, d.At, d.Message))
}

// Publish makes ref, which must be below refs/maestro/ or GateBranches, point at the draft,
// wherever it pointed before; at a server by a push. fault.Conflict when somebody
// moved it meanwhile.
func (r *Repo) Publish(ctx context.Context, ref pipeline.Ref, d Draft) (pipeline.CommitID, error) {
	if err := checkWritable(ref); err != nil {
		return "", err
	}
	tip, done, err := r.tipOf(ctx, ref)
	if err != nil {
		return "", err
	}
	defer done()
	m := maker{repo: r, made: memory.NewStorage()}
	h, err := d.write(&m)
	if err != nil {
		return "", fault.New(fault.KindOf(err), "write %s of %s: %w", ref, r, err)
	}
	id := pipeline.CommitID(h.String())
	if h == tip {
		return id, nil
	}
	if r.remote == nil {
		return id, moveRef(ctx, r.layout.common, string(ref), tip, h)
	}
	pack, err := m.pack()
	if err != nil {
		return "", fault.New(fault.Internal, "pack %s for %s: %w", ref, r, err)
	}
	ctx, cancel := context.WithTimeout(ctx, r.limits.Fetch)
	defer cancel()
	return id, r.remote.talk().push(ctx, string(ref), tip, h, pack)
}

// Remove deletes ref, which must be one that Publish makes, if it points at the
// object of that id; one that is gone already is no error. fault.Conflict when it
// points elsewhere.
func (r *Repo) Remove(ctx context.Context, ref pipeline.Ref, id string) error {
	if err := checkWritable(ref); err != nil {
		return err
	}
	if !isHex40(id) {
		return fault.New(fault.Invalid, "%s is not an object id", quote(id))
	}
	old := plumbing.NewHash(id)
	if r.remote == nil {
		return dropRef(ctx, r.layout.common, string(ref), old)
	}
	// A server removes a ref from wherever it is when it does not know the object
	// that we name, so look first.
	tip, done, err := r.tipOf(ctx, ref)
	if err != nil {
		return err
	}
	defer done()
	switch tip {
	case plumbing.ZeroHash:
		return nil
	case old:
		ctx, cancel := context.WithTimeout(ctx, r.limits.Fetch)
		defer cancel()
		return r.remote.talk().push(ctx, string(ref), old, plumbing.ZeroHash, nil)
	}
	return fault.New(fault.Conflict, "remove %s of %s: it points elsewhere", ref, r)
}

func checkWritable(ref pipeline.Ref) error {
	if !inSpaces(string(ref), writableSpaces) || !validRef(string(ref)) {
		return fault.New(fault.Invalid, "%s is not a ref of Maestro's own: it must begin with %s", quote(string(ref)), strings.Join(writableSpaces, " or "))
	}
	return nil
}

// tipOf returns the object that a ref points at now, zero when there is none. done
// ends the turn.
func (r *Repo) tipOf(ctx context.Context, ref pipeline.Ref) (tip plumbing.Hash, done func(), err error) {
	if r.remote == nil {
		tip, err = readRef(r.layout.common, string(ref))
		return tip, func() {}, err
	}
	turn, err := r.begin(ctx, r.fetching)
	if err != nil {
		return tip, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.limits.Fetch)
	defer cancel()
	adv, _, err := r.remote.talk().ask(ctx)
	if err != nil {
		turn()
		return tip, nil, err
	}
	return adv.all[string(ref)], turn, nil
}

// maker makes objects and remembers them for a push. Without a repo it only
// computes their names.
type maker struct {
	repo *Repo
	made *memory.Storage
}

func (m *maker) put(kind plumbing.ObjectType, data []byte) (plumbing.Hash, error) {
	if m.repo != nil {
		if h, err := m.repo.store.put(kind, data); err != nil {
			return h, fault.New(fault.Unavailable, "%w; check that this user may write to the repository and that the disk is not full", err)
		}
	}
	obj := &plumbing.MemoryObject{}
	obj.SetType(kind)
	_, _ = obj.Write(data) // never fails: it appends to a slice
	return m.made.SetEncodedObject(obj)
}

// pack encodes the objects that were made.
func (m *maker) pack() (io.ReadCloser, error) {
	hashes := make([]plumbing.Hash, 0, len(m.made.Objects))
	for h := range m.made.Objects {
		hashes = append(hashes, h)
	}
	slices.SortFunc(hashes, func(a, b plumbing.Hash) int { return bytes.Compare(a[:], b[:]) })
	return encodePack(m.made, hashes)
}
