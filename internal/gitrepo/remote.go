package gitrepo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// remote talks to a repository behind HTTP.
type remote struct {
	where       location
	credentials func() (user, secret string)
	limits      Limits
	base        http.RoundTripper
	own         *http.Transport // base, when nobody handed one in
}

func newRemote(where location, o Options, limits Limits) *remote {
	m := &remote{where: where, credentials: o.Credentials, limits: limits, base: o.Transport}
	if m.base == nil {
		dialer, proxy := &net.Dialer{Timeout: 15 * time.Second}, http.ProxyFromEnvironment
		if o.Public {
			dialer.Control, proxy = refusePrivate, nil
		}
		m.own = &http.Transport{
			Proxy:                 proxy,
			DialContext:           dialer.DialContext,
			TLSHandshakeTimeout:   15 * time.Second,
			ResponseHeaderTimeout: 60 * time.Second, // a large repository takes a while to count its objects
			IdleConnTimeout:       90 * time.Second,
			ForceAttemptHTTP2:     true,
			TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
		}
		m.base = m.own
	}
	return m
}

func (m *remote) close() {
	if m.own != nil {
		m.own.CloseIdleConnections()
	}
}

// login returns what to send, and the secret, to keep it out of messages.
func (m *remote) login() (transport.AuthMethod, string) {
	if m.credentials == nil {
		return nil, ""
	}
	user, secret := m.credentials()
	if user == "" && secret == "" {
		return nil, ""
	}
	if user == "" {
		user = "git" // forges that take a token as the password ignore the name
	}
	return &githttp.BasicAuth{Username: user, Password: secret}, secret
}

// talk is one conversation. Requests leave for the repository's own scheme, host
// and port only.
type talk struct {
	m      *remote
	client transport.Transport
	auth   transport.AuthMethod
	secret string
}

func (m *remote) talk() talk {
	auth, secret := m.login()
	hc := &http.Client{
		Transport: guard{m: m, authenticated: auth != nil},
		CheckRedirect: func(req *http.Request, _ []*http.Request) error {
			return m.sameOrigin(req.URL)
		},
	}
	return talk{m: m, client: githttp.NewClientWithOptions(hc, nil), auth: auth, secret: secret}
}

func (m *remote) sameOrigin(u *url.URL) error {
	if u.Scheme == m.where.url.Scheme && strings.EqualFold(u.Host, m.where.url.Host) {
		return nil
	}
	return fault.New(fault.Invalid, "the server redirects to %s, and credentials are not taken to another place; if the repository has moved, change its address",
		quote(u.Scheme+"://"+u.Host))
}

func (m *remote) endpoint() (*transport.Endpoint, error) {
	ep, err := transport.NewEndpoint(m.where.url.String())
	if err != nil {
		return nil, fault.New(fault.Invalid, "repository address %s: %w", m.where, err)
	}
	return ep, nil
}

// advertisement is what a server says its refs are.
type advertisement struct {
	head pipeline.Ref
	all  map[string]plumbing.Hash
	// behind maps tags to the object behind the tag object.
	behind map[string]plumbing.Hash
}

// ask opens a conversation for reading and returns the refs. An empty repository
// has none.
func (t talk) ask(ctx context.Context) (advertisement, transport.UploadPackSession, error) {
	ep, err := t.m.endpoint()
	if err != nil {
		return advertisement{}, nil, err
	}
	s, err := t.client.NewUploadPackSession(ep, t.auth)
	if err != nil {
		return advertisement{}, nil, t.explain("open", err)
	}
	ar, err := s.AdvertisedReferencesContext(ctx)
	if errors.Is(err, transport.ErrEmptyRemoteRepository) {
		return advertisement{}, s, nil
	}
	if err != nil {
		return advertisement{}, nil, t.explain("ask for the refs of", err)
	}
	adv := advertisement{all: ar.References, behind: ar.Peeled}
	for _, link := range ar.Capabilities.Get(capability.SymRef) {
		if target, ok := strings.CutPrefix(link, "HEAD:"); ok && validRef(target) && strings.HasPrefix(target, "refs/heads/") {
			adv.head = pipeline.Ref(target)
		}
	}
	return adv, s, nil
}

// pack asks for the wanted objects and what they need, without what is had.
func (t talk) pack(ctx context.Context, s transport.UploadPackSession, wants, haves []plumbing.Hash) (io.ReadCloser, error) {
	req := packp.NewUploadPackRequest()
	req.Wants, req.Haves = wants, haves
	for _, c := range []capability.Capability{capability.OFSDelta, capability.NoProgress} {
		if err := req.Capabilities.Set(c); err != nil {
			return nil, fault.New(fault.Internal, "ask for objects: %w", err)
		}
	}
	res, err := s.UploadPack(ctx, req)
	if err != nil {
		return nil, t.explain("fetch from", err)
	}
	return res, nil
}

// push moves one ref from old to new if it is still there; a zero id removes it,
// without a pack. fault.Conflict when it is not.
func (t talk) push(ctx context.Context, ref string, old, id plumbing.Hash, pack io.ReadCloser) error {
	ep, err := t.m.endpoint()
	if err != nil {
		return err
	}
	s, err := t.client.NewReceivePackSession(ep, t.auth)
	if err != nil {
		return t.explain("open", err)
	}
	req := packp.NewReferenceUpdateRequest()
	if err := req.Capabilities.Set(capability.ReportStatus); err != nil {
		return fault.New(fault.Internal, "offer notes: %w", err)
	}
	req.Commands = []*packp.Command{{Name: plumbing.ReferenceName(ref), Old: old, New: id}}
	req.Packfile = pack
	report, err := s.ReceivePack(ctx, req)
	if report != nil {
		for _, cs := range report.CommandStatuses {
			if cs.Error() != nil {
				return fault.New(fault.Conflict, "write %s of %s: the server says %s", ref, t.m.where, quote(cs.Status))
			}
		}
	}
	if err != nil {
		return t.explain("push to", err)
	}
	if report == nil {
		return fault.New(fault.Unavailable, "write %s of %s: the server did not say whether it did", ref, t.m.where)
	}
	return nil
}

// explain gives an error of a conversation its kind and a text that is safe to
// show: no credentials, no control characters, not long.
func (t talk) explain(doing string, err error) error {
	for {
		var unexpected *plumbing.UnexpectedError
		var permanent *plumbing.PermanentError
		if errors.As(err, &unexpected) {
			err = unexpected.Err
		} else if errors.As(err, &permanent) {
			err = permanent.Err
		} else {
			break
		}
	}
	var known *fault.Error
	if errors.As(err, &known) {
		return fault.New(known.Kind, "%s repository %s: %s", doing, t.m.where, t.clean(known.Error()))
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fault.New(fault.Unavailable, "%s repository %s: %w", doing, t.m.where, errors.Join(contextError(err)))
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return fault.New(fault.Unavailable, "%s repository %s: %s; check the address and the network", doing, t.m.where, t.clean(err.Error()))
}

func contextError(err error) error {
	if errors.Is(err, context.Canceled) {
		return context.Canceled
	}
	return context.DeadlineExceeded
}

func (t talk) clean(s string) string {
	if t.secret != "" {
		s = strings.ReplaceAll(s, t.secret, "***")
	}
	return display(s, 400)
}

// guard looks at each answer before go-git does: its origin, status, type and
// size.
type guard struct {
	m             *remote
	authenticated bool
}

func (g guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := g.m.sameOrigin(req.URL); err != nil {
		return nil, err
	}
	res, err := g.m.base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode >= 300 && res.StatusCode < 400 {
		return res, nil // for CheckRedirect
	}
	if err := g.judge(res); err != nil {
		_ = res.Body.Close()
		return nil, err
	}
	res.Body = &bounded{ReadCloser: res.Body, left: g.m.limits.PackBytes, most: g.m.limits.PackBytes}
	return res, nil
}

func (g guard) judge(res *http.Response) error {
	status := fmt.Sprintf("HTTP %d", res.StatusCode)
	switch code := res.StatusCode; {
	case code == http.StatusUnauthorized && !g.authenticated:
		return fault.New(fault.Invalid, "the server wants a login (%s); configure a token that may read the repository", status)
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return fault.New(fault.Invalid, "the server refuses the credentials (%s); configure a valid token with read access, and write access where something is pushed: notes, and the branches of gates", status)
	case code == http.StatusNotFound || code == http.StatusGone:
		return fault.New(fault.NotFound, "the server has no such repository, or does not show it to these credentials (%s); check the address and the token's access", status)
	case code == http.StatusTooManyRequests || code >= 500:
		return fault.New(fault.Unavailable, "the server answers %s; it will be asked again", status)
	case code < 200 || code > 299:
		return fault.New(fault.Invalid, "the server answers %s; check the address", status)
	}
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if !strings.HasPrefix(kind, "application/x-git-") {
		return fault.New(fault.Unavailable, "the answer is %s, not Git; is there a login page or a proxy in between, or is this not the clone address?", quote(kind))
	}
	return nil
}

// bounded fails once more than most bytes were read.
type bounded struct {
	io.ReadCloser
	left, most int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, fault.New(fault.Invalid, "the answer is larger than %d bytes, the limit for one fetch", b.most)
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}
