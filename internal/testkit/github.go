package testkit

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// GitHub is a stateful fake of GitHub with one repository, octo/ops; of another,
// octo/app, it takes statuses, see Source too. It fails the test
// for a request, and for an answer of its own, that is not as GitHub describes it.
// People act on it by the methods; it serves the API below /api/v3 and Git below /git.
type GitHub struct {
	*httptest.Server
	Repo *Repo
	// Token is what requests must carry.
	Token string

	t     testing.TB
	git   *GitServer
	posts sync.WaitGroup // of webhooks

	mu        sync.Mutex
	people    map[string]*githubPerson // by login
	teams     map[string][]string      // ORG/TEAM to logins
	pulls     []*githubPull
	reviews   []*githubReview
	comments  []*githubComment
	reactions []string // COMMENT SIGN
	statuses  []pipeline.Status
	pushes    []githubPush
	asked     []string // METHOD PATH of all requests, in order
	paid      int      // of them, those that count of the hourly budget
	fault     func(method, path string) Fault
	ids       int64
	hooked    string // where webhooks are posted
	secret    string
	times     int // that each is posted
	holding   bool
	held      []func() // webhooks that are kept back while holding
	app       *githubApp
	checks    []*CheckRun
	id        int           // of the repository
	lag       time.Duration // for which lists lack what is new
	source    *GitHubSource // nil unless a test asks for it
}

// Fault is what goes wrong with one request.
type Fault struct {
	// Status answers instead of GitHub when it is not 0, with this body and header.
	Status int
	Body   string
	Header map[string]string
	// Lost: the request is carried out, and its answer never comes.
	Lost bool
}

type githubPerson struct {
	id         int64
	login      string
	permission string
	bot        bool
}

type githubPull struct {
	number              int
	title               string
	author              string
	branch, base        string
	head                string
	fork, draft, closed bool
	closedBy, body      string
	merge               string
	brought             []string // commits that it brought to its base
	opened, updated     time.Time
}

type githubReview struct {
	id           int64
	pull         int
	by, state    string
	commit, body string
	at           time.Time
}

type githubComment struct {
	id       int64
	pull     int
	by, body string
	at, mod  time.Time
}

type githubPush struct{ branch, by, after string }

// MaestroLogin is the account whose token the fake knows.
const MaestroLogin = "maestro-bot"

// NewGitHub starts the fake on an empty repository.
func NewGitHub(t testing.TB) *GitHub {
	t.Helper()
	g := &GitHub{
		Repo: NewRepo(t), Token: "ghs_canary5d2f8b1c7e", t: t,
		people: map[string]*githubPerson{}, teams: map[string][]string{}, ids: 1000, id: 7,
	}
	g.git = ServeGit(t, g.Repo.Bare, "x-access-token", g.Token)
	g.Person(MaestroLogin, "write")
	g.Server = httptest.NewServer(g)
	t.Cleanup(func() {
		g.posts.Wait()
		g.Close()
	})
	return g
}

// Serve starts a server of the repository, over HTTP, with more arguments.
func (g *GitHub) Serve(t testing.TB, more ...string) *Server {
	t.Helper()
	return Serve(t, g.git.URL, nil, append(g.Flags(t), more...)...)
}

// Flags are those by which a server reaches the repository at g.Address().
func (g *GitHub) Flags(t testing.TB) []string {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	text, login := []byte(g.Token), []string{"--git-token-file", secret, "--git-user", "x-access-token", "--github-token-file", secret}
	if g.app != nil {
		text, login = g.app.pem, []string{"--github-app", "42", "--github-app-key-file", secret}
	}
	if err := os.WriteFile(secret, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return append(login, "--forge", "github", "--github-repo", "octo/ops", "--github-api", g.URL+"/api/v3/", "--public-url", "https://maestro.example")
}

// Address of the repository.
func (g *GitHub) Address() string { return g.git.URL }

// Person makes or changes an account with its permission: admin, write, read or none.
func (g *GitHub) Person(login, permission string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := g.people[login]; p != nil {
		p.permission = permission
		return
	}
	g.ids++
	g.people[login] = &githubPerson{id: g.ids, login: login, permission: permission, bot: strings.HasSuffix(login, "[bot]")}
}

// Rename gives an account another login; who takes the old one is another account.
func (g *GitHub) Rename(old, login string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.people[old]
	delete(g.people, old)
	p.login = login
	g.people[login] = p
}

// Team sets the members of ORG/TEAM.
func (g *GitHub) Team(name string, logins ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.teams[name] = logins
}

// Fail sets what goes wrong, nil for nothing.
func (g *GitHub) Fail(fault func(method, path string) Fault) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fault = fault
}

// Asked returns the requests so far, as METHOD PATH.
func (g *GitHub) Asked() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.asked)
}

// Paid returns how many requests counted of GitHub's hourly budget.
func (g *GitHub) Paid() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.paid
}

// Replace makes the repository another one of the same name.
func (g *GitHub) Replace() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.id++
}

// Lag makes lists of comments lack what was written less than d ago.
func (g *GitHub) Lag(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lag = d
}

// Push commits files as somebody and pushes them to a branch; from is where the branch
// begins when it is new.
func (g *GitHub) Push(by, branch, from string, files map[string]string) pipeline.CommitID {
	g.t.Helper()
	commit := g.commit(by, branch, from, files)
	g.Repo.Git(g.Repo.Work, "push", "--quiet", "--force", g.Repo.Remote, "HEAD:refs/heads/"+branch)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.moved(branch, by)
	return commit
}

// PushTo makes a branch point at a commit.
func (g *GitHub) PushTo(by, branch string, commit pipeline.CommitID) {
	g.t.Helper()
	g.Repo.Git(g.Repo.Work, "push", "--quiet", "--force", g.Repo.Remote, string(commit)+":refs/heads/"+branch)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.moved(branch, by)
}

// commit makes a commit by somebody in the working copy.
func (g *GitHub) commit(by, branch, from string, files map[string]string) pipeline.CommitID {
	g.t.Helper()
	r := g.Repo
	if exec.Command("git", "-C", r.Bare, "rev-parse", "--verify", "--quiet", "refs/heads/"+branch).Run() == nil {
		from = branch
	}
	if from != "" {
		r.Git(r.Work, "fetch", "--quiet", r.Bare, "refs/heads/"+from)
		r.Git(r.Work, "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD")
	}
	r.Write(files)
	r.Git(r.Work, "add", "-A")
	who := fmt.Sprintf("%s <%s@example.com>", by, by)
	r.Git(r.Work, "-c", "user.name="+by, "commit", "--quiet", "--allow-empty", "--author", who, "-m", "change by "+by)
	return pipeline.CommitID(r.Git(r.Work, "rev-parse", "HEAD"))
}

// moved brings pull requests up to date with their branch. Called with mu.
func (g *GitHub) moved(branch, by string) {
	head := g.Repo.Git(g.Repo.Bare, "rev-parse", "refs/heads/"+branch)
	g.pushes = append(g.pushes, githubPush{branch, by, head})
	g.tell("push", 0)
	for _, p := range g.pulls {
		if p.branch == branch && !p.fork && !p.closed {
			p.head = head
			g.touch(p)
			g.Repo.Git(g.Repo.Bare, "update-ref", fmt.Sprintf("refs/pull/%d/head", p.number), head)
		}
	}
}

func (g *GitHub) touch(p *githubPull) {
	p.updated = time.Now().UTC()
	g.tell("pull_request", p.number)
}

// Open opens a pull request for a branch and returns its number.
func (g *GitHub) Open(by, branch, base, title string) int {
	g.t.Helper()
	head := g.Repo.Git(g.Repo.Bare, "rev-parse", "refs/heads/"+branch)
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open(&githubPull{title: title, author: by, branch: branch, base: base, head: head})
}

func (g *GitHub) open(p *githubPull) int {
	p.number, p.opened = len(g.pulls)+1, time.Now()
	g.touch(p)
	g.pulls = append(g.pulls, p)
	g.Repo.Git(g.Repo.Bare, "update-ref", fmt.Sprintf("refs/pull/%d/head", p.number), p.head)
	return p.number
}

// OpenFork opens a pull request of somebody's fork, with files on top of base.
func (g *GitHub) OpenFork(by, base, title string, files map[string]string) (int, pipeline.CommitID) {
	g.t.Helper()
	commit := g.commit(by, "", base, files)
	// Objects of forks are in the same store; no branch here points at them.
	g.Repo.Git(g.Repo.Work, "push", "--quiet", "--force", g.Repo.Remote, "HEAD:refs/forks/"+string(commit))
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open(&githubPull{title: title, author: by, branch: "main", base: base, head: string(commit), fork: true}), commit
}

// OpenForkAt opens a pull request of somebody's fork that proposes a commit which is in
// the repository already.
func (g *GitHub) OpenForkAt(by, base, title string, commit pipeline.CommitID) int {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open(&githubPull{title: title, author: by, branch: "main", base: base, head: string(commit), fork: true})
}

// PushFork pushes another commit to the fork of a pull request.
func (g *GitHub) PushFork(by string, number int, files map[string]string) pipeline.CommitID {
	g.t.Helper()
	r := g.Repo
	r.Git(r.Work, "fetch", "--quiet", r.Bare, fmt.Sprintf("refs/pull/%d/head", number))
	r.Git(r.Work, "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD")
	commit := g.commit(by, "", "", files)
	r.Git(r.Work, "push", "--quiet", "--force", r.Remote, "HEAD:refs/forks/"+string(commit))
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.pulls[number-1]
	p.head = string(commit)
	g.touch(p)
	r.Git(r.Bare, "update-ref", fmt.Sprintf("refs/pull/%d/head", number), p.head)
	return commit
}

// Edit changes a pull request: its draft state, its base, or whether it is closed.
func (g *GitHub) Edit(number int, draft bool, base string, closed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.pulls[number-1]
	p.draft, p.base, p.closed = draft, base, closed
	g.touch(p)
}

// Review gives a review of the head: APPROVED, CHANGES_REQUESTED or COMMENTED.
func (g *GitHub) Review(by string, number int, state, body string) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.pulls[number-1]
	g.ids++
	id := g.ids
	g.reviews = append(g.reviews, &githubReview{id: id, pull: number, by: by, state: state, commit: p.head, body: body, at: time.Now().UTC()})
	g.touch(p)
	return id
}

// Dismiss dismisses a review.
func (g *GitHub) Dismiss(id int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.reviews {
		if r.id == id {
			r.state = "DISMISSED"
			g.touch(g.pulls[r.pull-1])
		}
	}
}

// Comment writes a comment and returns its number.
func (g *GitHub) Comment(by string, number int, body string) int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.comment(by, number, body)
}

func (g *GitHub) comment(by string, number int, body string) int64 {
	g.ids++
	id, now := g.ids, time.Now().UTC()
	g.comments = append(g.comments, &githubComment{id: id, pull: number, by: by, body: body, at: now, mod: now})
	g.touch(g.pulls[number-1])
	return id
}

// EditComment changes a comment as its author would, some time later.
func (g *GitHub) EditComment(id int64, body string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.comments {
		if c.id == id {
			c.body, c.mod = body, time.Now().UTC().Add(2*time.Second)
		}
	}
}

// Comments returns the texts of a pull request's comments by somebody.
func (g *GitHub) Comments(by string, number int) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []string
	for _, c := range g.comments {
		if c.by == by && c.pull == number {
			out = append(out, c.body)
		}
	}
	return out
}

// Reactions returns the signs on a comment.
func (g *GitHub) Reactions(id int64) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []string
	for _, r := range g.reactions {
		if sign, ok := strings.CutPrefix(r, fmt.Sprintf("%d ", id)); ok {
			out = append(out, sign)
		}
	}
	return out
}

// Merge merges a pull request, with a merge commit or squashed, and returns the commit.
func (g *GitHub) Merge(by string, number int, squash bool) pipeline.CommitID {
	g.t.Helper()
	g.mu.Lock()
	p := *g.pulls[number-1]
	g.mu.Unlock()
	r := g.Repo
	base := r.Git(r.Bare, "rev-parse", "refs/heads/"+p.base)
	tree := strings.Fields(r.Git(r.Bare, "merge-tree", "--write-tree", base, p.head))[0]
	args := []string{"-c", "user.name=" + by, "commit-tree", tree, "-m", fmt.Sprintf("Merge #%d", number), "-p", base}
	if !squash {
		args = append(args, "-p", p.head)
	}
	merge := r.Git(r.Bare, args...)
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.pulls[number-1]
	q.closed, q.merge, q.brought = true, merge, strings.Fields(r.Git(r.Bare, "rev-list", base+".."+merge))
	g.touch(q)
	r.Git(r.Bare, "update-ref", "refs/heads/"+p.base, merge, base)
	g.moved(p.base, by)
	return pipeline.CommitID(merge)
}

// States returns the states that were posted for a commit and context, oldest first.
func (g *GitHub) States(commit pipeline.CommitID, context string) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []string
	for _, s := range g.statuses {
		if s.Commit == commit && s.Context == context {
			out = append(out, s.State)
		}
	}
	return out
}

// Contexts returns the contexts that were posted for a commit, sorted.
func (g *GitHub) Contexts(commit pipeline.CommitID) []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []string
	for _, s := range g.statuses {
		if s.Commit == commit {
			out = append(out, s.Context)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Status returns the last status of a commit and context.
func (g *GitHub) Status(commit pipeline.CommitID, context string) pipeline.Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out pipeline.Status
	for _, s := range g.statuses {
		if s.Commit == commit && s.Context == context {
			out = s
		}
	}
	return out
}

// AwaitStatus waits until the last status has the state and the text in it.
func (g *GitHub) AwaitStatus(commit pipeline.CommitID, context, state, text string) pipeline.Status {
	g.t.Helper()
	var s pipeline.Status
	Eventually(g.t, fmt.Sprintf("GitHub has %s %s of %s: %s", context, state, commit.Short(), text), func() (bool, string) {
		s = g.Status(commit, context)
		return s.State == state && strings.Contains(s.Description, text), fmt.Sprintf("%+v", s)
	})
	return s
}

// AwaitComment waits until Maestro has exactly one comment on a pull request, with all
// the texts in it.
func (g *GitHub) AwaitComment(number int, texts ...string) string {
	g.t.Helper()
	var body string
	Eventually(g.t, fmt.Sprintf("one comment on %d with %q", number, texts), func() (bool, string) {
		all := g.Comments(MaestroLogin, number)
		if len(all) != 1 {
			return false, strings.Join(all, "\n======\n")
		}
		body = all[0]
		for _, want := range texts {
			if !strings.Contains(body, want) {
				return false, "without " + want + ":\n" + body
			}
		}
		return true, ""
	})
	return body
}

func marshal(t testing.TB, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		t.Error(err)
	}
	return b
}
