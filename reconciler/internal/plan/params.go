package plan

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Params fills in the composition's defaults and checks the result against its
// declared types. given is a JSON object or empty. The error lists all that is wrong.
func Params(c *pipeline.Composition, given json.RawMessage) (json.RawMessage, error) {
	have := map[string]json.RawMessage{}
	if len(given) > 0 && !bytes.Equal(given, []byte("null")) {
		if err := json.Unmarshal(given, &have); err != nil {
			return nil, fmt.Errorf("params of %s are not a JSON object: %w", c.Name, err)
		}
	}
	var wrong []string
	for _, f := range c.Params {
		v, ok := have[f.Name]
		switch {
		case ok:
			for _, w := range f.Type.CheckJSON(v) {
				wrong = append(wrong, f.Name+": "+w)
			}
		case f.Default != nil:
			have[f.Name] = f.Default
		case !f.Optional:
			wrong = append(wrong, f.Name+": is missing")
		}
	}
	for _, name := range undeclared(c, have) {
		wrong = append(wrong, name+": is not declared")
	}
	if len(wrong) > 0 {
		return nil, fmt.Errorf("params of %s: %s", c.Name, strings.Join(wrong, "; "))
	}
	return json.Marshal(have) // map keys are sorted, so equal params are equal bytes
}

func undeclared(c *pipeline.Composition, have map[string]json.RawMessage) []string {
	var out []string
	for name := range have {
		if !slices.ContainsFunc(c.Params, func(f pipeline.Field) bool { return f.Name == name }) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Key identifies the run that an event asks for: SHA-256 over length-prefixed
// parts, so that no two lists of parts collide. Seeing the same event again, after
// a restart or by redelivery, gives the same key. generation tells runs apart that
// were asked for again. The delivery of a webhook is the same whatever is in force when
// it comes again, and so is a time of a schedule when the clock comes to it again; so of
// their keys the commit, the composition's digest and the params are no part.
func Key(e pipeline.Event, c *pipeline.Composition, params json.RawMessage, generation int64) pipeline.RunKey {
	head, digest := e.Head, c.Digest
	if e.Kind == pipeline.EventWebhook || e.Kind == pipeline.EventCron {
		head, digest, params = "", "", nil
	}
	parts := []string{
		e.Kind, e.Repo, string(e.Ref), string(head), string(c.Name), string(digest), string(params), fmt.Sprint(generation),
	}
	return pipeline.RunKey(hex.EncodeToString(sumOf(append(parts, distinctions(e)...))))
}

// RetryKey identifies the run that a request asks for which goes on from another one.
func RetryKey(of pipeline.RunKey, request string) pipeline.RunKey {
	return pipeline.RunKey(hex.EncodeToString(sumOf([]string{"retry", string(of), request})))
}

// sumOf is SHA-256 over length-prefixed parts.
func sumOf(parts []string) []byte {
	h := sha256.New()
	for _, part := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(part)))
		h.Write(n[:])
		h.Write([]byte(part))
	}
	return h.Sum(nil)
}

// distinctions tell apart the events of one kind at one commit; a push has none.
func distinctions(e pipeline.Event) []string {
	var out []string
	add := func(what, value string) {
		if value != "" {
			out = append(out, what, value)
		}
	}
	add("proposal", e.Proposal)
	add("target", e.Target)
	add("name", e.Name)
	add("id", e.ID)
	add("config", string(e.Config))
	if !e.Time.IsZero() {
		add("time", e.Time.UTC().Format(time.RFC3339Nano))
	}
	if e.Cause != nil {
		add("run", string(e.Cause.Run))
		add("task", string(e.Cause.Task))
	}
	return out
}
