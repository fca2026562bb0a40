package fleet

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
	"github.com/maestro-cd/maestro/internal/wire"
)

const (
	mostEnrolBody = 16 << 10
	enrolTime     = 15 * time.Second
	// mostDownloads at one time for one agent; it fetches one plugin per task.
	mostDownloads = 16
	// A download goes on as long as every piece of it is taken within pieceTime.
	pieceTime = 30 * time.Second
	// tokenBytes of randomness in a join token: 192 bits.
	tokenBytes  = 24
	tokenPrefix = "maestro-join-"
)

var (
	treeRE = regexp.MustCompile(`^(?:[0-9a-f]{40}|[0-9a-f]{64})$`)
	sumRE  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	joinRE = regexp.MustCompile(`^[A-Za-z0-9_-]{20,200}$`)
)

// NewJoinToken returns a one-time token for enrolment and the hash to record of
// it. The token is shown once and stored nowhere.
func NewJoinToken() (token string, hash [32]byte) {
	b := make([]byte, tokenBytes)
	_, _ = rand.Read(b) // never fails, see its documentation
	token = tokenPrefix + base64.RawURLEncoding.EncodeToString(b)
	return token, sha256.Sum256([]byte(token))
}

// route knows exact paths only: what is written in another way is not there.
func (f *Fleet) route(w http.ResponseWriter, r *http.Request) {
	serve, method := f.find(r.URL.EscapedPath())
	switch {
	case serve == nil:
		answer(w, http.StatusNotFound, "there is nothing here")
	case r.Method != method:
		w.Header().Set("Allow", method)
		answer(w, http.StatusMethodNotAllowed, "use "+method)
	case r.URL.RawQuery != "" || r.URL.ForceQuery:
		// A token in a URL ends in logs and histories.
		answer(w, http.StatusBadRequest, "this path takes no query; a token belongs in the Authorization header")
	case len(r.Header["Origin"]) > 0:
		answer(w, http.StatusForbidden, "requests from browsers are refused here")
	case !f.begin():
		w.Header().Set("Retry-After", "5")
		answer(w, http.StatusServiceUnavailable, "the server stops")
	default:
		defer f.wg.Done()
		serve(w, r)
	}
}

func (f *Fleet) find(path string) (serve http.HandlerFunc, method string) {
	switch path {
	case wire.PathConnect:
		return f.connect, http.MethodGet
	case wire.PathEnrol:
		return f.enrol, http.MethodPost
	}
	if hex, ok := strings.CutPrefix(path, wire.PathPlugin); ok {
		hex, ok = strings.CutSuffix(hex, ".tar")
		if ok && treeRE.MatchString(hex) {
			return f.fetching(func(ctx context.Context, w io.Writer) error {
				return f.cfg.Bundles.Plugin(ctx, pipeline.Digest("git:"+hex), w)
			}), http.MethodGet
		}
	}
	if sum, ok := strings.CutPrefix(path, wire.PathArchive); ok && sumRE.MatchString(sum) {
		return f.fetching(func(ctx context.Context, w io.Writer) error { return f.copyArchive(ctx, sum, w) }), http.MethodGet
	}
	return nil, ""
}

func (f *Fleet) copyArchive(ctx context.Context, sum string, w io.Writer) error {
	rc, err := f.cfg.Bundles.Archive(ctx, sum)
	if err != nil {
		return err
	}
	defer rc.Close()
	_, err = io.Copy(w, rc)
	return err
}

// enrol records a new agent for a join token.
func (f *Fleet) enrol(w http.ResponseWriter, r *http.Request) {
	log := f.cfg.Log.With("remote", r.RemoteAddr)
	if !f.enrols.take(hostOf(r)) {
		w.Header().Set("Retry-After", "10")
		answer(w, http.StatusTooManyRequests, "too many enrolments from this address; try again later")
		return
	}
	token, ok := bearer(r)
	if !ok || !joinRE.MatchString(token) {
		w.Header().Set("WWW-Authenticate", "Bearer")
		answer(w, http.StatusUnauthorized, "enrolment needs a join token in the Authorization header; make one with `reconciler agents invite`")
		return
	}
	a, err := readEnrolment(w, r, token)
	if err != nil {
		log.Info("enrolment refused", "audit", true, "err", err)
		answer(w, statusOf(err), err.Error())
		return
	}
	log = log.With("agent_id", a.ID, "agent", a.Name)
	a, err = f.cfg.Registry.Enrol(r.Context(), sha256.Sum256([]byte(token)), a, time.Now())
	switch fault.KindOf(err) {
	case "":
		log.Info("agent enrolled", "audit", true, "pool", a.Pool, "untrusted", a.Untrusted)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(wire.EnrolResponse{Agent: a.ID, Pool: a.Pool, Untrusted: a.Untrusted, Server: f.cfg.Server})
	case fault.NotFound, fault.Conflict, fault.Invalid:
		log.Warn("enrolment refused", "audit", true, "err", err)
		answer(w, http.StatusForbidden, err.Error())
	default:
		log.Error("enrolment not recorded", "err", err)
		answer(w, http.StatusServiceUnavailable, "the server cannot write its record at the moment")
	}
}

// readEnrolment reads the request and checks that its sender holds the key.
func readEnrolment(w http.ResponseWriter, r *http.Request, token string) (pipeline.Agent, error) {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(enrolTime)) // not every server can; then its own limits hold
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mostEnrolBody))
	_ = rc.SetReadDeadline(time.Time{})
	if err != nil {
		return pipeline.Agent{}, fault.New(fault.Invalid, "read enrolment of at most %d bytes: %w", mostEnrolBody, err)
	}
	var req wire.EnrolRequest
	if err := json.Unmarshal(body, &req); err != nil {
		return pipeline.Agent{}, fault.New(fault.Invalid, "read enrolment: %w", err)
	}
	if len(req.PublicKey) != ed25519.PublicKeySize {
		return pipeline.Agent{}, fault.New(fault.Invalid, "read enrolment: the public key has %d bytes, not %d", len(req.PublicKey), ed25519.PublicKeySize)
	}
	if !ed25519.Verify(req.PublicKey, wire.SignedEnrol(token), req.Signature) {
		return pipeline.Agent{}, fault.New(fault.Invalid, "read enrolment: the signature is not of this token and key")
	}
	id := pipeline.AgentIDOf(req.PublicKey)
	name := label(req.Name)
	if name == "" {
		name = string(id)
	}
	return pipeline.Agent{ID: id, Name: name, PublicKey: req.PublicKey}, nil
}

// fetching serves a download to whoever shows a live session's fetch token.
func (f *Fleet) fetching(send func(ctx context.Context, w io.Writer) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s := f.fetcher(r)
		if s == nil {
			w.Header().Set("WWW-Authenticate", "Bearer")
			answer(w, http.StatusUnauthorized, "downloads need the fetch token of a live session")
			return
		}
		if !s.startDownload() {
			w.Header().Set("Retry-After", "1")
			answer(w, http.StatusTooManyRequests, "this agent downloads too much at once")
			return
		}
		defer s.endDownload()
		d := &download{w: w, rc: http.NewResponseController(w)}
		err := send(r.Context(), d)
		_ = d.rc.SetWriteDeadline(time.Time{})
		switch {
		case err == nil:
		case d.started:
			s.log.Warn("download broke off", "path", r.URL.Path, "err", err)
			// The only way to tell a client that a body which began well is not whole.
			panic(http.ErrAbortHandler)
		case fault.Is(err, fault.NotFound), fault.Is(err, fault.Invalid):
			answer(w, statusOf(err), err.Error())
		default:
			s.log.Error("download not served", "path", r.URL.Path, "err", err)
			answer(w, statusOf(err), "the server cannot read this at the moment")
		}
	}
}

// fetcher returns the session whose fetch token the request carries. Tokens are
// looked up by their hash, so that the time it takes tells nothing about them.
func (f *Fleet) fetcher(r *http.Request) *session {
	token, ok := bearer(r)
	if !ok || f.cfg.Bundles == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fetchers[sha256.Sum256([]byte(token))]
}

func (s *session) startDownload() bool {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	if s.downloads >= mostDownloads {
		return false
	}
	s.downloads++
	return true
}

func (s *session) endDownload() {
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	s.downloads--
}

// download is a response that starts with its first byte, so that an error before
// it can still have a status.
type download struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	started bool
}

func (d *download) Write(b []byte) (int, error) {
	if !d.started {
		d.started = true
		d.w.Header().Set("Content-Type", "application/octet-stream")
	}
	if err := d.rc.SetWriteDeadline(time.Now().Add(pieceTime)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return 0, err
	}
	return d.w.Write(b)
}

// bearer returns the token of the one Authorization header.
func bearer(r *http.Request) (string, bool) {
	h := r.Header["Authorization"]
	if len(h) != 1 {
		return "", false
	}
	return strings.CutPrefix(h[0], "Bearer ")
}

func statusOf(err error) int {
	switch fault.KindOf(err) {
	case fault.Invalid:
		return http.StatusBadRequest
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Conflict:
		return http.StatusConflict
	case fault.Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func answer(w http.ResponseWriter, status int, sentence string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": sentence})
}
