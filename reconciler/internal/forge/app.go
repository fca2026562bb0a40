package forge

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/maestro-cd/maestro/internal/fault"
	"github.com/maestro-cd/maestro/internal/pipeline"
)

// App is a GitHub App that is installed for the repository. Its key signs for minutes;
// what requests carry is a token of one hour, for the one repository, that may do no
// more than is used.
type App struct {
	ID int64
	// Key returns the private key in PEM. It is asked anew for each signature.
	Key func() ([]byte, error)
}

const (
	// renewBefore is how long before its end a token is replaced: longer than any
	// request takes.
	renewBefore = 5 * time.Minute
	// signedFor is how long a signature of the key counts; GitHub allows 10 minutes.
	signedFor = 9 * time.Minute
	// skew is how far the clock here may be ahead of GitHub's.
	skew = time.Minute
)

// powers are the permissions that are used, and what for.
var powers = []struct{ name, level, why string }{
	{"metadata", "read", "to find the repository"},
	{"contents", "read", "to read the repository, and who pushed"},
	{"statuses", "write", "to post commit statuses"},
	{"checks", "write", "to show mistakes on their lines"},
	{"pull_requests", "write", "to read pull requests and comment on them"},
	{"issues", "write", "to read and answer comments"},
	{"members", "read", "to read who is in a team that the policy or CODEOWNERS names"},
}

// appTokens keeps a token of the App's installation.
type appTokens struct {
	app         App
	owner, repo string
	client      *github.Client // that signs by the key
	explain     func(doing, needs string, err error) error

	turn chan struct{} // held by who renews

	mu    sync.Mutex
	token string
	ends  time.Time
	self  pipeline.Account
}

// Token returns a token that holds for some minutes at least. An error says why there
// is none.
func (a *appTokens) Token(ctx context.Context) (string, error) {
	if t := a.kept(); t != "" {
		return t, nil
	}
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return "", fault.New(fault.Unavailable, "get a token of the App: %w", context.Cause(ctx))
	}
	if t := a.kept(); t != "" { // somebody else was faster
		return t, nil
	}
	in, _, err := a.client.Apps.FindRepositoryInstallation(ctx, a.owner, a.repo)
	if err != nil {
		return "", a.explain("find the App's installation", "an installation for the repository", err)
	}
	ask := &github.InstallationTokenOptions{Repositories: []string{a.repo}, Permissions: least(in.GetPermissions())}
	got, _, err := a.client.Apps.CreateInstallationToken(ctx, in.GetID(), ask)
	if err != nil {
		return "", a.explain("get a token of the App", "an installation for the repository", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.token, a.ends = got.GetToken(), got.GetExpiresAt().Time
	return a.token, nil
}

// drop forgets a token that GitHub does not accept, as after the App was suspended or
// installed anew: the next request carries another one.
func (a *appTokens) drop(token string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.token == token {
		a.token, a.ends = "", time.Time{}
	}
}

func (a *appTokens) kept() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if time.Until(a.ends) < renewBefore {
		return ""
	}
	return a.token
}

// granted returns the level of each permission that an installation has.
func granted(p *github.InstallationPermissions) map[string]string {
	out := map[string]string{}
	raw, err := json.Marshal(p)
	if err == nil {
		_ = json.Unmarshal(raw, &out) // it was made of such a map
	}
	return out
}

// least are the permissions that are used, of those that were granted: asking for more
// than that is refused.
func least(p *github.InstallationPermissions) *github.InstallationPermissions {
	has, ask := granted(p), map[string]string{}
	for _, w := range powers {
		switch have := has[w.name]; {
		case have == "":
		case have == "write" && w.level == "read":
			ask[w.name] = w.level
		default:
			ask[w.name] = have
		}
	}
	// Gates are commits that are pushed, where that was granted.
	if has["contents"] == "write" {
		ask["contents"] = "write"
	}
	raw, err := json.Marshal(ask)
	out := &github.InstallationPermissions{}
	if err != nil || json.Unmarshal(raw, out) != nil {
		return nil // all that was granted
	}
	return out
}

// Self is the App's own account.
func (a *appTokens) Self(ctx context.Context, users *github.Client) (pipeline.Account, error) {
	a.mu.Lock()
	self := a.self
	a.mu.Unlock()
	if self.ID != 0 {
		return self, nil
	}
	app, _, err := a.client.Apps.Get(ctx, "")
	if err != nil {
		return self, a.explain("read which App it is", "the key of an App", err)
	}
	u, _, err := users.Users.Get(ctx, app.GetSlug()+"[bot]")
	if err != nil {
		return self, a.explain("read the App's account", "the key of an App", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.self = accountOf(u)
	return a.self, nil
}

// sign makes the token by which the App itself speaks.
func (a *appTokens) sign(context.Context) (string, error) {
	text, err := a.app.Key()
	if err != nil {
		return "", err
	}
	key, err := parseKey(text)
	if err != nil {
		return "", err
	}
	now := time.Now()
	claims, err := json.Marshal(map[string]any{"iat": now.Add(-skew).Unix(), "exp": now.Add(signedFor).Unix(), "iss": strconv.FormatInt(a.app.ID, 10)})
	if err != nil {
		return "", fmt.Errorf("sign for the App: %w", err)
	}
	e := base64.RawURLEncoding
	body := e.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + e.EncodeToString(claims)
	sum := sha256.Sum256([]byte(body))
	signature, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		return "", fault.New(fault.Invalid, "sign for the App: %w", err)
	}
	return body + "." + e.EncodeToString(signature), nil
}

// parseKey reads a private key as GitHub gives it out. Its error tells nothing of it.
func parseKey(text []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fault.New(fault.Invalid, "the key of the GitHub App is not PEM; give the file that GitHub made when the key was generated")
	}
	if key, err := x509.ParsePKCS1PrivateKey(block.Bytes); err == nil {
		return key, nil
	}
	any, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := any.(*rsa.PrivateKey)
	if err != nil || !ok {
		return nil, fault.New(fault.Invalid, "the key of the GitHub App is not a private RSA key; give the file that GitHub made when the key was generated")
	}
	return key, nil
}

// Check asks GitHub whether all that is needed was granted. who is by which account
// Maestro acts; lacks says what to grant, a sentence for each thing.
func (g *GitHub) Check(ctx context.Context) (who string, lacks []string, err error) {
	self, err := g.Self(ctx)
	if err != nil {
		return "", nil, err
	}
	if g.app != nil {
		in, _, err := g.app.client.Apps.FindRepositoryInstallation(ctx, g.cfg.Owner, g.cfg.Repo)
		if err != nil {
			return self.Login, nil, g.explain("find the App's installation", "an installation for the repository", err)
		}
		has := granted(in.GetPermissions())
		for _, w := range powers {
			if have := has[w.name]; have != "write" && have != "admin" && have != w.level {
				lacks = append(lacks, fmt.Sprintf("grant the App %s: %s, %s", w.name, w.level, w.why))
			}
		}
		if len(lacks) > 0 {
			return self.Login, lacks, nil // its tokens are not made
		}
	}
	repo, _, err := g.client.Repositories.Get(ctx, g.cfg.Owner, g.cfg.Repo)
	if err != nil {
		return self.Login, nil, g.explain("read the repository", "read access to the repository", err)
	}
	if g.app == nil && !repo.GetPermissions()["push"] {
		lacks = append(lacks, "grant the token write access to commit statuses, pull requests and issues, and read access to contents")
	}
	lacks = append(lacks, g.refused(ctx, repo.GetDefaultBranch(), self)...)
	slices.Sort(lacks)
	return self.Login, lacks, nil
}

// refused says of what reviews and comments are judged by what cannot be asked. A server
// of one's own may be too old for some of it.
func (g *GitHub) refused(ctx context.Context, branch string, self pipeline.Account) (lacks []string) {
	_, pulls := g.Pulls(ctx)
	_, comments := g.CommentsSince(ctx, time.Now())
	_, pushed := g.activity(ctx, "read who pushes to "+branch, branch)
	_, may := g.MayWrite(ctx, self)
	for _, err := range []error{pulls, comments, pushed, may} {
		if err != nil {
			lacks = append(lacks, err.Error())
		}
	}
	return lacks
}

// TeamThere asks whether a team is there, @ORG/TEAM: of one that GitHub hides it says of
// everybody that they are no member.
func (g *GitHub) TeamThere(ctx context.Context, team string) error {
	m := teamRE.FindStringSubmatch(team)
	if m == nil {
		return fault.New(fault.Invalid, "%s is no team; name one as @ORGANIZATION/TEAM", team)
	}
	_, _, err := g.client.Teams.GetTeamBySlug(ctx, m[1], m[2])
	if missing(err) {
		return fault.New(fault.Invalid, "%s says that there is no team %s, or hides it: nobody is a member of it; mend the name in the policy, or grant %s", g.Name(), team, needsMembers)
	}
	if err != nil {
		return g.explain("read the team "+team, needsMembers, err)
	}
	return nil
}

// Token returns what a request would carry now, for Git.
func (g *GitHub) Token(ctx context.Context) (string, error) { return g.lane.token(ctx) }

// signer is the way of requests that are signed by the key of an App.
func (g *GitHub) signer(a *appTokens) *github.Client {
	c := github.NewClient(&http.Client{
		// A host of its own: it is asked in the middle of requests that wait for it.
		Transport:     &lane{base: g.lane.base, next: g.cfg.HTTP, token: a.sign, host: NewHost(time.Time{}, nil)},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       requestTime,
	})
	c.BaseURL, c.UserAgent = g.lane.base, userAgent
	return c
}
