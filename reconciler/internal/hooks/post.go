package hooks

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Of the headers in each list, the first that is there counts. They are written as
// net/http keeps them.
var (
	signatures = []string{"X-Maestro-Signature", "X-Hub-Signature-256"}
	deliveries = []string{"X-Maestro-Delivery", "X-Github-Delivery"}
)

// header returns the value of the first of the headers that is there; more than one
// value is none.
func header(h http.Header, names []string) (value string, there bool) {
	for _, n := range names {
		if v := h[n]; len(v) > 0 {
			if len(v) > 1 {
				return "", true
			}
			return v[0], true
		}
	}
	return "", false
}

// signed reports whether the signature is of the body, by the secret. It takes as long
// for a signature that is missing or malformed.
func signed(h http.Header, secret string, body []byte) bool {
	v, _ := header(h, signatures)
	text, ok := strings.CutPrefix(v, "sha256=")
	given, err := hex.DecodeString(text)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	return hmac.Equal(given, mac.Sum(nil)) && ok && err == nil
}

var deliveryRE = regexp.MustCompile(`^[!-~]{1,128}$`)

// nameOf tells a delivery from others: by the sender's name for it, else by what it says.
func nameOf(h http.Header, body []byte) (string, error) {
	name, there := header(h, deliveries)
	switch {
	case !there:
		return string(pipeline.DigestOf(body)), nil
	case !deliveryRE.MatchString(name):
		return "", fault.New(fault.Invalid, "the delivery id must be up to 128 printable characters without spaces, given once")
	}
	return name, nil
}

// mostDepth bounds how deep a payload may be nested: others have to read it.
const mostDepth = 64

// parse returns the body as one JSON object that everybody reads alike: each key once,
// texts in UTF-8, numbers of a bounded size.
func parse(body []byte) (json.RawMessage, error) {
	if !json.Valid(body) {
		return nil, fault.New(fault.Invalid, "the body is not JSON")
	}
	v, err := pipeline.DecodeJSON(body)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the body is not JSON: %w", err)
	}
	if _, ok := v.(map[string]any); !ok {
		return nil, fault.New(fault.Invalid, "the body is not a JSON object")
	}
	if err := bounded(v, mostDepth); err != nil {
		return nil, err
	}
	out, err := json.Marshal(v)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the body is not JSON: %w", err)
	}
	return out, nil
}

func bounded(v any, depth int) error {
	if depth == 0 {
		return fault.New(fault.Invalid, "the body is nested deeper than %d levels", mostDepth)
	}
	switch v := v.(type) {
	case map[string]any:
		for _, e := range v {
			if err := bounded(e, depth-1); err != nil {
				return err
			}
		}
	case []any:
		for _, e := range v {
			if err := bounded(e, depth-1); err != nil {
				return err
			}
		}
	case json.Number:
		if !(pipeline.Type{Kind: pipeline.KindNumber}).Fits(v) {
			return fault.New(fault.Invalid, "the body has a number of more than 400 digits")
		}
	}
	return nil
}
