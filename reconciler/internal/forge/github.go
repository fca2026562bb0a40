package forge

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// GitHubConfig says which repository on GitHub, and how to reach it.
type GitHubConfig struct {
	Owner, Repo string
	// BaseURL of the API; "" is https://api.github.com. For GitHub Enterprise
	// Server it is https://HOST/api/v3. http:// is for this machine only.
	BaseURL string
	// Token is asked for each request, so that it may be short-lived. App, when it is
	// not nil, is used instead.
	Token func() string
	App   *App
	// HTTP carries the requests; nil is http.DefaultTransport. It must not
	// follow redirects by itself.
	HTTP http.RoundTripper
	// Host is shared by all repositories of one GitHub; nil for one of its own.
	Host *Host
	Log  *slog.Logger
}

// GitHub posts commit statuses to one repository on GitHub.
type GitHub struct {
	cfg    GitHubConfig
	client *github.Client
	lane   *lane
	app    *appTokens // nil without an App
}

var ownerRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$`)

// NewGitHub checks the configuration (fault.Invalid) and asks the network
// nothing.
func NewGitHub(cfg GitHubConfig) (*GitHub, error) {
	cfg.BaseURL = cmp.Or(cfg.BaseURL, "https://api.github.com")
	base, err := url.Parse(strings.TrimRight(cfg.BaseURL, "/") + "/")
	if err != nil || base.User != nil || base.Host == "" || base.RawQuery != "" || base.Fragment != "" {
		return nil, fault.New(fault.Invalid, "GitHub: the address of the API is not a plain URL; give one such as https://api.github.com, and the token apart from it")
	}
	if base.Scheme != "https" && !(base.Scheme == "http" && isLoopback(base.Hostname())) {
		return nil, fault.New(fault.Invalid, "GitHub: the address of the API must begin with https://, or the token would travel unprotected")
	}
	repoOK := ownerRE.MatchString(cfg.Owner) && ownerRE.MatchString(strings.TrimLeft(cfg.Repo, "._-"))
	if !repoOK || cfg.Repo == "." || cfg.Repo == ".." {
		return nil, fault.New(fault.Invalid, "GitHub: %q is not a repository; give OWNER/NAME", cfg.Owner+"/"+cfg.Repo)
	}
	if cfg.HTTP == nil {
		cfg.HTTP = http.DefaultTransport
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Host == nil {
		cfg.Host = NewHost(time.Time{}, nil)
	}
	way := &lane{base: base, next: newEtags(cfg.HTTP), token: cfg.token, host: cfg.Host}
	client := github.NewClient(&http.Client{
		Transport: way,
		// Never followed: a POST that is redirected may become a GET that
		// succeeds, and elsewhere the token has no business.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       requestTime,
	})
	client.BaseURL, client.UserAgent = base, userAgent
	g := &GitHub{cfg: cfg, client: client, lane: way}
	if cfg.App != nil {
		g.app = &appTokens{app: *cfg.App, owner: cfg.Owner, repo: cfg.Repo, explain: g.explain, turn: make(chan struct{}, 1)}
		g.app.client = g.signer(g.app)
		way.token, way.denied = g.app.Token, g.app.drop
	}
	return g, nil
}

// requestTime bounds one request.
const (
	requestTime = 30 * time.Second
	userAgent   = "maestro"
)

func (cfg *GitHubConfig) token(context.Context) (string, error) {
	if cfg.Token == nil {
		return "", nil
	}
	return cfg.Token(), nil
}

// Name returns "github OWNER/NAME".
func (g *GitHub) Name() string { return "github " + g.cfg.Owner + "/" + g.cfg.Repo }

// Post implements Forge.
func (g *GitHub) Post(ctx context.Context, s pipeline.Status) error {
	s, err := fit(s)
	if err != nil {
		return err
	}
	if !commitRE.MatchString(string(s.Commit)) {
		return fault.New(fault.Invalid, "status %s: %q is not a commit id", s.Context, s.Commit)
	}
	ask := &github.RepoStatus{State: &s.State, Context: &s.Context, Description: &s.Description}
	if s.URL != "" {
		ask.TargetURL = &s.URL
	}
	got, _, err := g.client.Repositories.CreateStatus(ctx, g.cfg.Owner, g.cfg.Repo, string(s.Commit), ask)
	if err != nil {
		return g.explain("post status "+s.Context+" of commit "+s.Commit.Short(), needsStatuses, err)
	}
	if got.GetState() != s.State || got.GetContext() != s.Context {
		return fault.New(fault.Unavailable, "post status %s of commit %s: %s answers with another status than was sent; it will be posted again",
			s.Context, s.Commit.Short(), g.Name())
	}
	g.cfg.Log.Debug("status posted", "commit", s.Commit, "context", s.Context, "state", s.State)
	return nil
}

var commitRE = regexp.MustCompile(`^[0-9a-f]{40}$`)

// Statuses implements Forge.
func (g *GitHub) Statuses(ctx context.Context, commit pipeline.CommitID) ([]pipeline.Status, error) {
	if !commitRE.MatchString(string(commit)) {
		return nil, fault.New(fault.Invalid, "read statuses: %q is not a commit id", commit)
	}
	var out []pipeline.Status
	opts := &github.ListOptions{PerPage: 100}
	const mostPages = 20 // of contexts; nobody could read more
	for range mostPages {
		combined, res, err := g.client.Repositories.GetCombinedStatus(ctx, g.cfg.Owner, g.cfg.Repo, string(commit), opts)
		if err != nil {
			return nil, g.explain("read statuses of commit "+commit.Short(), needsStatuses, err)
		}
		for _, s := range combined.Statuses {
			out = append(out, pipeline.Status{
				Commit: commit, Context: s.GetContext(), State: s.GetState(),
				Description: s.GetDescription(), URL: s.GetTargetURL(),
			})
		}
		// The page number is all that is taken from the link header; the host
		// stays ours.
		if res.NextPage <= opts.Page {
			break
		}
		opts.Page = res.NextPage
	}
	slices.SortFunc(out, func(a, b pipeline.Status) int { return cmp.Compare(a.Context, b.Context) })
	return out, nil
}

// explain gives an error of the client its kind, a text with the next step, and
// the time when GitHub named one. needs is what has to be granted for it.
func (g *GitHub) explain(doing, needs string, err error) error {
	var (
		known     *fault.Error
		limit     *github.RateLimitError
		secondary *github.AbuseRateLimitError
		answer    *github.ErrorResponse
	)
	say := func(kind fault.Kind, format string, args ...any) error {
		return fault.New(kind, "%s at %s: %w", doing, g.Name(), fault.New(kind, format, args...))
	}
	later := func(at time.Time) error {
		g.lane.host.hush(at)
		return fault.New(fault.Unavailable, "%s at %s: %w", doing, g.Name(),
			&LaterError{At: at, Err: errors.New("its rate limit is used up until " + at.UTC().Format(time.RFC3339))})
	}
	switch {
	case errors.As(err, &known):
		return fault.New(known.Kind, "%s at %s: %w", doing, g.Name(), known)
	case errors.As(err, &limit):
		return later(limit.Rate.Reset.Time)
	case errors.As(err, &secondary):
		// GitHub's advice where it names no time is to wait a minute at least.
		wait := time.Minute
		if secondary.RetryAfter != nil {
			wait = *secondary.RetryAfter
		}
		return later(time.Now().Add(wait))
	case errors.As(err, &answer):
		return g.judge(answer, needs, say, later)
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return say(fault.Unavailable, "%w", err)
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	told := fitText(g.withoutToken(err.Error()), 300) + "; check the network, it will be tried again"
	if at, ok := NextAt(err); ok {
		return say(fault.Unavailable, "%w", &LaterError{At: at, Err: errors.New(told)})
	}
	return say(fault.Unavailable, "%s", told)
}

func (g *GitHub) judge(e *github.ErrorResponse, needs string, say func(fault.Kind, string, ...any) error, later func(time.Time) error) error {
	code := e.Response.StatusCode
	if at, ok := askedLater(e.Response); ok && (code == http.StatusForbidden || code == http.StatusTooManyRequests || code >= 500) {
		return later(at)
	}
	told := fitText(g.withoutToken(e.Message), 200)
	switch {
	case code == http.StatusUnauthorized:
		return say(fault.Invalid, "it does not accept the token (HTTP 401, %s); set one that is valid and has not expired", told)
	case code == http.StatusForbidden:
		return say(fault.Invalid, "the token may not do this (HTTP 403, %s); grant it %s", told, needs)
	case code == http.StatusNotFound:
		return say(fault.Invalid, "it has no such repository or commit, or hides it from this token (HTTP 404); check owner and name, and grant the token %s", needs)
	case code >= 300 && code < 400:
		return say(fault.Invalid, "the repository has moved (HTTP %d), and the token is not sent after it; set its present owner and name", code)
	case code == http.StatusRequestTimeout || code == http.StatusTooManyRequests || code >= 500:
		return say(fault.Unavailable, "it answers HTTP %d; it will be tried again", code)
	}
	return say(fault.Invalid, "it refuses the request (HTTP %d, %s)", code, told)
}

func (g *GitHub) withoutToken(s string) string {
	t := ""
	if g.app != nil {
		t = g.app.kept()
	} else if g.cfg.Token != nil {
		t = g.cfg.Token()
	}
	if t == "" {
		return s
	}
	return strings.ReplaceAll(s, t, "***")
}
