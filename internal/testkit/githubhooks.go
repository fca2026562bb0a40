package testkit

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
)

// Hook posts webhooks to an address from now on, each as often as is said: lost, sent,
// or repeated.
func (g *GitHub) Hook(url, secret string, times int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.hooked, g.secret, g.times = url, secret, times
}

// tell posts a webhook about a pull request, 0 for none. Called with mu.
func (g *GitHub) tell(event string, number int) {
	payload := map[string]any{}
	if number > 0 {
		payload["pull_request"] = map[string]any{"number": number}
	}
	g.post(event, payload)
}

// post posts a webhook. Called with mu.
func (g *GitHub) post(event string, payload map[string]any) {
	if g.hooked == "" {
		return
	}
	g.ids++
	payload["sent"] = g.ids // no two things that happen are told in the same words
	if payload["repository"] == nil {
		payload["repository"] = map[string]any{"id": g.id, "full_name": "octo/ops"}
	}
	body := marshal(g.t, payload)
	mac := hmac.New(sha256.New, []byte(g.secret))
	mac.Write(body)
	signature := "sha256=" + hex.EncodeToString(mac.Sum(nil))
	to, delivery := g.hooked, fmt.Sprint("delivery-", g.ids)
	send := func() {
		req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, to, bytes.NewReader(body))
		if err != nil {
			g.t.Error(err)
			return
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-GitHub-Event", event)
		req.Header.Set("X-GitHub-Delivery", delivery)
		req.Header.Set("X-Hub-Signature-256", signature)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return // the reconciler was stopped
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusAccepted {
			g.t.Errorf("the webhook is answered with %s", res.Status)
		}
	}
	for range g.times {
		if g.holding {
			g.held = append(g.held, send)
		} else {
			g.posts.Go(send)
		}
	}
}

// Hold keeps webhooks back, as a network does that delivers them late.
func (g *GitHub) Hold() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.holding = true
}

// Release posts the webhooks that were kept back, the latest first, each when the one
// before was answered; what comes from now on is posted at once.
func (g *GitHub) Release() {
	g.mu.Lock()
	held := g.held
	g.held, g.holding = nil, false
	g.mu.Unlock()
	for _, send := range slices.Backward(held) {
		send()
	}
}
