// Package hooks receives what other systems post to /hooks/ID. It believes whoever
// signs the body with the webhook's secret, bounds what one post may cost, and hands
// what it believes to the loop, which decides what it starts. It stores nothing, so a
// post that was answered with anything but 202 has to come again.
//
// The signature is of the body. The name of a delivery comes in a header beside it,
// so somebody who has read a signed post, which TLS prevents, could send it again
// under another name.
package hooks

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

const (
	// Path is followed by the id of a webhook.
	Path = "/hooks/"
	// MaxBody is the most bytes that a post may have.
	MaxBody = 64 << 10

	bodyTime = 15 * time.Second
	// mostAtOnce bounds the bodies in memory. It is as many as a listener has to do
	// with at once, for who sends slowly keeps a place.
	mostAtOnce = 1024
)

// Config is what a Receiver needs; every field is required.
type Config struct {
	// Secret returns the secret of the webhook that is in force under the id. It is
	// fault.NotFound when there is none, fault.Unavailable when that is not known
	// yet, and any other error when the secret cannot be read.
	Secret func(id string) (string, error)
	// Deliver starts what waits for the webhook and returns the runs; repeated when
	// the delivery has started them before. An error says why nothing started, and is
	// shown to the sender unless it is fault.Internal.
	Deliver func(ctx context.Context, id, delivery string, payload json.RawMessage) (runs []pipeline.RunID, repeated bool, err error)
	Log     *slog.Logger
}

// Receiver is the handler of all that is below Path.
type Receiver struct {
	cfg Config
	// nobody is the secret of webhooks that are not there.
	nobody  string
	slots   chan struct{}
	senders *buckets
	// refusals bounds what strangers can write into the log.
	refusals *buckets
}

// New returns a Receiver. It starts nothing.
func New(cfg Config) *Receiver {
	return &Receiver{
		cfg: cfg, nobody: rand.Text(), slots: make(chan struct{}, mostAtOnce),
		senders: newBuckets(), refusals: newBuckets(),
	}
}

// ServeHTTP answers one post. Nothing in front of it may clean paths.
func (h *Receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, ok := strings.CutPrefix(r.URL.EscapedPath(), Path)
	switch {
	case !ok || !pipeline.ValidName(id):
		refuse(w, http.StatusNotFound, "there is nothing here")
		return
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed, "use POST")
		return
	case r.URL.RawQuery != "" || r.URL.ForceQuery:
		refuse(w, http.StatusBadRequest, "this path takes no query")
		return
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
		h.receive(w, r, id)
	default:
		later(w, http.StatusServiceUnavailable, "too much is being received; send it again")
	}
}

func (h *Receiver) receive(w http.ResponseWriter, r *http.Request, id string) {
	body, err := readBody(w, r)
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		refuse(w, http.StatusRequestEntityTooLarge, "a body has at most 64 KiB")
		return
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, "the body could not be read")
		return
	}
	if !h.admit(w, r, id, body) {
		return
	}
	payload, err := parse(body)
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	delivery, err := nameOf(r.Header, body)
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	runs, repeated, err := h.cfg.Deliver(r.Context(), id, delivery, payload)
	if err != nil {
		h.failed(w, id, err)
		return
	}
	h.cfg.Log.Info("webhook received", "webhook", id, "delivery", delivery, "runs", len(runs), "repeated", repeated)
	answer(w, http.StatusAccepted, struct {
		Runs     []pipeline.RunID `json:"runs"`
		Repeated bool             `json:"repeated,omitempty"`
	}{runs, repeated})
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTime)) // not every server can; then its own limits hold
	defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	return io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
}

// admit reports whether the body is signed by who has the webhook's secret and has
// not sent too much; else it answers. A webhook that is not there costs as much as a
// wrong signature.
func (h *Receiver) admit(w http.ResponseWriter, r *http.Request, id string, body []byte) bool {
	secret, err := h.cfg.Secret(id)
	if err != nil || secret == "" { // a signature by nothing is anybody's
		secret = h.nobody
	}
	genuine := signed(r.Header, secret, body) && secret != h.nobody
	switch {
	case fault.Is(err, fault.NotFound):
		refuse(w, http.StatusNotFound, "there is nothing here")
	case fault.Is(err, fault.Unavailable):
		later(w, http.StatusServiceUnavailable, "the server is not ready")
	case !genuine:
		refuse(w, http.StatusUnauthorized, "the post is not signed as it should be")
	case !h.senders.take(id):
		later(w, http.StatusTooManyRequests, "too many deliveries of this webhook")
		return false
	default:
		return true
	}
	if h.refusals.take("") {
		h.cfg.Log.Warn("post to a webhook refused", "audit", true, "webhook", id, "remote", r.RemoteAddr, "err", err)
	}
	return false
}

// failed tells the sender why nothing started.
func (h *Receiver) failed(w http.ResponseWriter, id string, err error) {
	h.cfg.Log.Warn("webhook started nothing", "webhook", id, "err", err)
	switch fault.KindOf(err) {
	case fault.Invalid:
		refuse(w, http.StatusBadRequest, err.Error())
	case fault.Conflict:
		refuse(w, http.StatusConflict, err.Error())
	case fault.NotFound: // it was there a moment ago
		refuse(w, http.StatusNotFound, "there is nothing here")
	case fault.Unavailable:
		later(w, http.StatusServiceUnavailable, err.Error())
	default:
		refuse(w, http.StatusInternalServerError, "the server could not carry it out; send it again")
	}
}

func later(w http.ResponseWriter, status int, sentence string) {
	w.Header().Set("Retry-After", "1")
	refuse(w, status, sentence)
}

func refuse(w http.ResponseWriter, status int, sentence string) {
	answer(w, status, map[string]string{"error": sentence})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}
