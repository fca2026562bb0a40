package hooks

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// GitHubPath is where GitHub posts its webhooks.
const GitHubPath = "/github"

const (
	// maxHint is as much as GitHub sends.
	maxHint = 25 << 20
	// mostHintsAtOnce bounds the bodies in memory.
	mostHintsAtOnce = 8
	// mostDeliveries are remembered, so that a repeated one costs no look.
	mostDeliveries = 10_000
)

// Hint is what a post of GitHub may be about. It is never believed, but for Rerun: who
// gets it looks for themselves.
type Hint struct {
	Event string
	// Pull is the number of a pull request, 0 for none.
	Pull int
	// Rerun is the button of a check run that somebody pressed, nil for none. GitHub
	// keeps nothing of it that could be looked at.
	Rerun *Rerun
}

// Rerun asks to run again what failed of a commit.
type Rerun struct {
	Head pipeline.CommitID
	By   pipeline.Account
	// Body is the digest of the post, and the same when that is repeated: the name of the
	// delivery is not signed.
	Body pipeline.Digest
}

// GitHubConfig is what GitHub needs; every field is required.
type GitHubConfig struct {
	// Secret signs the posts.
	Secret func() (string, error)
	// Repository is OWNER/NAME.
	Repository string
	// ID of the repository is compared with that of a post, so that one about another
	// repository of the same name does not count; nil, or 0 of it, when it is not known.
	ID func() int64
	// App is the number of the GitHub App whose check runs count, 0 for none.
	App int64
	// Hint is told of each post about it that counts, Elsewhere of one about another
	// repository, and answers whether that is anything to us. Neither may wait.
	Hint      func(Hint)
	Elsewhere func(repository string) bool
	Log       *slog.Logger
}

// GitHub receives the webhooks of GitHub. They carry no news: what is lost, repeated,
// late or out of order only changes when Maestro looks.
type GitHub struct {
	cfg      GitHubConfig
	nobody   string
	slots    chan struct{}
	refusals *buckets

	mu    sync.Mutex
	seen  map[string]bool
	order []string // the oldest first
}

// NewGitHub returns a handler for GitHubPath. It starts nothing.
func NewGitHub(cfg GitHubConfig) *GitHub {
	return &GitHub{
		cfg: cfg, nobody: rand.Text(), slots: make(chan struct{}, mostHintsAtOnce), refusals: newBuckets(), seen: map[string]bool{},
	}
}

// ServeHTTP answers one post.
func (g *GitHub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed, "use POST")
		return
	}
	select {
	case g.slots <- struct{}{}:
		defer func() { <-g.slots }()
	default:
		later(w, http.StatusServiceUnavailable, "too much is being received; send it again")
		return
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTime))
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxHint))
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		refuse(w, http.StatusRequestEntityTooLarge, "a body has at most 25 MiB")
		return
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "the body could not be read")
		return
	}
	if !g.genuine(r.Header, body) {
		if g.refusals.take("") {
			g.cfg.Log.Warn("post of GitHub refused", "audit", true, "remote", r.RemoteAddr)
		}
		refuse(w, http.StatusUnauthorized, "the post is not signed as it should be")
		return
	}
	h, about, id, err := parseHint(r.Header.Get("X-GitHub-Event"), body, g.cfg.App)
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	if g.isOther(about, id) {
		g.cfg.Log.Warn("post of GitHub is about another repository of the same name", "audit", true, "repository", about, "id", id)
		refuse(w, http.StatusForbidden, "the post is about another repository of the same name")
		return
	}
	answer(w, http.StatusAccepted, map[string]bool{"told": g.tell(h, about, r.Header, body)})
}

// isOther reports whether a post is about a repository that has only the name of ours.
func (g *GitHub) isOther(about string, id int64) bool {
	if g.cfg.ID == nil || !strings.EqualFold(about, g.cfg.Repository) {
		return false
	}
	own := g.cfg.ID()
	return own != 0 && id != own
}

// tell passes a post on, and reports whether it counted.
func (g *GitHub) tell(h Hint, about string, header http.Header, body []byte) bool {
	ours := strings.EqualFold(about, g.cfg.Repository)
	switch {
	case h.Event == "ping", ours && !g.first(header, body):
		return false
	case ours:
		g.cfg.Hint(h)
		return true
	}
	return g.cfg.Elsewhere(about)
}

// genuine reports whether GitHub's one signature is of these very bytes.
func (g *GitHub) genuine(h http.Header, body []byte) bool {
	secret, err := g.cfg.Secret()
	if err != nil || secret == "" {
		secret = g.nobody
	}
	only := http.Header{}
	for name, v := range h {
		if name == "X-Hub-Signature-256" && len(v) == 1 && v[0] == strings.ToLower(v[0]) {
			only[name] = v
		}
	}
	return signed(only, secret, body) && secret != g.nobody
}

// first reports whether a delivery is seen for the first time, as far as is remembered:
// neither under its name, which nothing proves, nor with the same words, which somebody may
// have kept.
func (g *GitHub) first(h http.Header, body []byte) bool {
	words := string(pipeline.DigestOf(body))
	name, err := nameOf(h, body)
	if err != nil {
		name = words
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	again := g.seen[name] || g.seen[words]
	for _, k := range []string{name, words} {
		if g.seen[k] {
			continue
		}
		if len(g.order) >= mostDeliveries {
			delete(g.seen, g.order[0])
			g.order = g.order[1:]
		}
		g.seen[k] = true
		g.order = append(g.order, k)
	}
	return !again
}

type checkRun struct {
	HeadSHA string `json:"head_sha"`
	App     struct {
		ID int64 `json:"id"`
	} `json:"app"`
}

// parseHint takes the little that is used of a post, and nothing else of it. app is the
// one whose check runs count.
func parseHint(event string, body []byte, app int64) (h Hint, repository string, id int64, err error) {
	var p struct {
		Repository struct {
			ID       int64  `json:"id"`
			FullName string `json:"full_name"`
		} `json:"repository"`
		PullRequest struct {
			Number int `json:"number"`
		} `json:"pull_request"`
		Issue struct {
			Number int `json:"number"`
		} `json:"issue"`
		Action   string   `json:"action"`
		CheckRun checkRun `json:"check_run"`
		Sender   struct {
			ID    int64  `json:"id"`
			Login string `json:"login"`
			Type  string `json:"type"`
		} `json:"sender"`
	}
	if trimmed := bytes.TrimLeft(body, " \t\r\n"); len(trimmed) == 0 || trimmed[0] != '{' {
		return h, "", 0, fault.New(fault.Invalid, "the body is not a JSON object; choose the content type application/json for the webhook")
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return h, "", 0, fault.New(fault.Invalid, "the body is not what GitHub sends: %w", err)
	}
	h = Hint{Event: event, Pull: max(p.PullRequest.Number, p.Issue.Number, 0)}
	if event == "check_run" && p.Action == "rerequested" && app != 0 && p.CheckRun.App.ID == app {
		h.Rerun = &Rerun{
			Head: pipeline.CommitID(p.CheckRun.HeadSHA),
			By:   pipeline.Account{ID: p.Sender.ID, Login: p.Sender.Login, Bot: p.Sender.Type != "User"},
			Body: pipeline.DigestOf(body),
		}
	}
	return h, p.Repository.FullName, p.Repository.ID, nil
}
