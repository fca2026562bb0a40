package forge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/fault"
)

// lane is the only way to the API: requests leave for its address and no other, when its
// host may be asked; the token goes with those alone, and what comes back is JSON of a
// sane size.
type lane struct {
	base   *url.URL
	next   http.RoundTripper
	token  func(context.Context) (string, error)
	denied func(token string) // told of one that is not accepted; nil for nobody
	host   *Host
}

// maxAnswer is far above any answer about statuses.
const maxAnswer = 8 << 20

func (l *lane) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != l.base.Scheme || req.URL.Host != l.base.Host || !strings.HasPrefix(req.URL.Path, l.base.Path) {
		return nil, fault.New(fault.Invalid, "a request to %q was stopped: the token is for %s only", req.URL.Host, l.base.Host)
	}
	trial, err := l.host.enter(req.Context())
	if err != nil {
		return nil, err
	}
	if makes(req) {
		err = l.host.turn(req.Context())
	}
	if err != nil {
		l.host.leave(trial, notAsked)
		return nil, err
	}
	res, err := l.carry(req)
	at := l.host.leave(trial, answerOf(res, err))
	switch {
	case at.IsZero():
		return res, err
	case err != nil:
		return nil, &LaterError{At: at, Err: err}
	case !fails(res):
		return res, nil
	}
	_ = res.Body.Close()
	return nil, askLater(at, fmt.Sprintf("it answers HTTP %d; it will be tried again", res.StatusCode))
}

// makes reports whether a request makes something that people are told of: a comment, a
// pull request, a check run or a sign, and no status.
func makes(req *http.Request) bool {
	return req.Method == http.MethodPost && !strings.Contains(req.URL.Path, "/statuses/")
}

// answerOf says what a request tells of the host.
func answerOf(res *http.Response, err error) answer {
	_, named := NextAt(err)
	switch {
	case named, errors.Is(err, context.Canceled), fault.Is(err, fault.Invalid):
		return notAsked
	case err != nil || fails(res):
		return failed
	}
	return answered
}

// fails reports whether an answer is none, of a host that does not say when to ask again.
func fails(res *http.Response) bool {
	_, named := askedLater(res)
	return !named && (res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests)
}

func (l *lane) carry(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	t, err := l.token(req.Context())
	if err != nil {
		return nil, err
	}
	if t != "" {
		req.Header.Set("Authorization", "Bearer "+t)
	}
	res, err := l.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	res.Header = soon(res.Header)
	if res.StatusCode == http.StatusUnauthorized && l.denied != nil {
		l.denied(t)
	}
	if strange(res) {
		_ = res.Body.Close()
		return nil, fault.New(fault.Unavailable, "the answer is %q, not JSON; is there a login page or a proxy in between, or is this not the address of the API?",
			fitText(res.Header.Get("Content-Type"), 60))
	}
	res.Body = &capped{ReadCloser: res.Body, left: maxAnswer}
	return res, nil
}

// strange reports whether an answer that would say something of what was asked about does
// not come from the API: that it is there, that it is not, or where it is.
func strange(res *http.Response) bool {
	switch code := res.StatusCode; {
	case code == http.StatusNoContent, code == http.StatusNotModified, isJSON(res):
		return false
	case code >= 300 && code < 400, code == http.StatusNotFound:
		return res.Header.Get("Content-Type") != ""
	default:
		return code >= 200 && code < 300
	}
}

func isJSON(res *http.Response) bool {
	kind, _, err := mime.ParseMediaType(res.Header.Get("Content-Type"))
	return err == nil && (kind == "application/json" || strings.HasSuffix(kind, "+json"))
}

type capped struct {
	io.ReadCloser
	left int
}

func (c *capped) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("the answer is too large")
	}
	n, err := c.ReadCloser.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// soon is a header that asks for no longer silence than longestQuiet.
func soon(h http.Header) http.Header {
	h = h.Clone()
	latest := time.Now().Add(longestQuiet)
	if v := h.Get("Retry-After"); v != "" {
		if at, ok := retryAfter(v); !ok {
			h.Del("Retry-After")
		} else if at.After(latest) {
			h.Set("Retry-After", strconv.Itoa(int(longestQuiet.Seconds())))
		}
	}
	if n, err := strconv.ParseInt(h.Get("X-RateLimit-Reset"), 10, 64); err == nil && n > latest.Unix() {
		h.Set("X-RateLimit-Reset", strconv.FormatInt(latest.Unix(), 10))
	}
	return h
}

func retryAfter(v string) (time.Time, bool) {
	if n, err := strconv.ParseInt(v, 10, 32); err == nil && n >= 0 {
		return time.Now().Add(time.Duration(n) * time.Second), true
	}
	at, err := http.ParseTime(v)
	return at, err == nil
}

// askedLater reads from an answer when to ask again.
func askedLater(res *http.Response) (time.Time, bool) {
	if at, ok := retryAfter(res.Header.Get("Retry-After")); ok {
		return at, true
	}
	if res.Header.Get("X-RateLimit-Remaining") == "0" {
		if n, err := strconv.ParseInt(res.Header.Get("X-RateLimit-Reset"), 10, 64); err == nil && n > 0 {
			return time.Unix(n, 0), true
		}
	}
	return time.Time{}, false
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
