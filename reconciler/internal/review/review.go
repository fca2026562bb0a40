// Package review reads what people say through refs of their own, and decides
// whether it counts: reviews of a change or of a gate, and requests for a run. It
// is pure, and every rule about who may approve what is here and nowhere else.
//
// An approval counts for one head and one plan. Nothing is remembered across heads
// or plans, nothing is inherited, and what is not known for certain counts against.
package review

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Lifetime is how long an approval counts.
const Lifetime = 24 * time.Hour

// Review is one that was found, before it is judged.
type Review struct {
	pipeline.Review
	// Names are all that the person is known by, By among them; others than By only
	// where a key proves them.
	Names []string
	// Signed: a key that the base allows proves who gave it.
	Signed bool
	// Head that it is of, and the digest of the plan that it names, at least its first
	// 12 digits, or that there was to be seen when it was given; "" when there was none.
	Head pipeline.CommitID
	Plan pipeline.Digest
	// Void says why it counts for nothing whatever the rules are, as when its
	// signature is forged; "" otherwise.
	Void string
}

// Person is an author or committer, as commits name them.
type Person struct{ Name, Email string }

// Rule asks for Count different members of one of the groups Approvers, none for
// anybody who may review. Echo: whose text names the commit, so that nobody approves
// what was pushed between their look and their click.
type Rule struct {
	Name      string
	Approvers []string
	Count     int
	Echo      bool
	// Owners and what follows are as in pipeline.Need.
	Owners []string
	Paths  []string
	More   int
	Nobody string
}

// Input is all that the decision depends on.
type Input struct {
	// Head is what is reviewed. Plan is the digest of its plan; "" where the head says
	// all, as that of a gate does.
	Head pipeline.CommitID
	Plan pipeline.Digest
	// Commit is what a text may name as well as the head where a rule wants that: the one
	// that the run of a gate is of; "" for none.
	Commit pipeline.CommitID
	// Rules and Groups are the base's, never the change's.
	Rules  []Rule
	Groups []pipeline.Group
	// AtForge: people have accounts, of whose reviewers Standing tells.
	AtForge  bool
	Standing map[pipeline.Account]Standing `json:"-"`
	// Authors wrote or asked for what is reviewed: none of them may approve it.
	// AuthorsUnknown: they could not all be listed.
	// Nobody says why, "" when the history is too long.
	Authors        []Person
	AuthorsUnknown bool
	Nobody         string
	Reviews        []Review
	// Truncated: there are reviews that could not be listed. Unread says why, "" when
	// there are too many. Denied is Unread where that lasts until somebody grants or
	// mends something, "" where it may pass by itself.
	Truncated bool
	Unread    string
	Denied    string
	// Unsigned reviews count.
	Unsigned bool
	Now      time.Time
}

// Decision is what the reviews come to.
type Decision struct {
	Approval pipeline.Approval
	Needs    []pipeline.Need
	// Opinions are the reviews, in the order in which they were given.
	Opinions []pipeline.Opinion
	// Sentence says what is missing and whose turn it is, or who decided.
	Sentence string
	// Nobody says why as things are nobody can give what is missing, "" otherwise.
	Nobody string
	// Until is when an approval that counts becomes too old, zero when none does.
	Until time.Time
}

// Approved decides.
func Approved(in Input) Decision {
	d := Decision{}
	var approving, against []Review
	sorted := slices.Clone(in.Reviews)
	slices.SortStableFunc(sorted, func(a, b Review) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.By, b.By))
	})
	for _, r := range sorted {
		why := in.against(&r)
		d.Opinions = append(d.Opinions, pipeline.Opinion{Review: r.Review, Signed: r.Signed, Counts: why == "", Why: why})
		switch {
		case why != "":
		case r.Approve:
			approving = append(approving, r)
			if end := r.At.Add(Lifetime); d.Until.IsZero() || end.Before(d.Until) {
				d.Until = end
			}
		default:
			against = append(against, r)
		}
	}
	missing := false
	for _, rule := range in.Rules {
		n := pipeline.Need{
			Rule: rule.Name, Approvers: rule.Approvers, People: Others(in.people(rule), in.Authors), Want: max(rule.Count, 1), Echo: rule.Echo,
			Owners: rule.Owners, Paths: rule.Paths, More: rule.More, Nobody: rule.Nobody,
		}
		n.Have = in.count(rule, approving)
		missing = missing || n.Have < n.Want
		d.Needs = append(d.Needs, n)
	}
	switch {
	case len(against) > 0:
		d.Approval, d.Sentence = pipeline.ApprovalRefused, refused(against[0])
	case missing:
		d.Approval, d.Sentence = pipeline.ApprovalWaiting, in.waiting(d.Needs)
		if in.Denied != "" {
			d.Sentence += "; no review counts until they can be read: " + in.Denied
		}
		for _, n := range d.Needs {
			if n.Have < n.Want && d.Nobody == "" {
				d.Nobody = in.nobody(&n)
			}
		}
	case len(in.Rules) == 0:
		d.Approval, d.Sentence = pipeline.ApprovalNone, "no approval is needed"
	default:
		d.Approval, d.Sentence = pipeline.ApprovalGiven, "approved by "+strings.Join(who(approving), " and ")
	}
	return d
}

// against says why a review does not count, "" when it does.
func (in *Input) against(r *Review) string {
	switch {
	case r.Void != "":
		return r.Void
	case r.Head != in.Head:
		return "it is of another head, " + r.Head.Short()
	case !r.Signed && !in.Unsigned:
		return "it is not signed; sign it with a key that allowed_signers on the default branch names"
	case in.wrote(r):
		return "who wrote or asked for it does not review it"
	case !in.eligible(r):
		return r.By + " is in none of the groups that are asked" + in.orOwns()
	case !r.Approve:
		return "" // a refusal needs no more than somebody who may give it
	case in.Unread != "":
		return "its standing cannot be read: " + in.Unread
	case in.Truncated:
		return "there are too many reviews to read them all; delete old refs under refs/reviews/"
	case in.AuthorsUnknown && in.Nobody != "":
		return "who wrote the change cannot be told: " + in.Nobody
	case in.AuthorsUnknown:
		return "who wrote the change cannot be told: its history is too long"
	case in.Plan != "" && r.Plan == "":
		return "it was given before there was a plan to see; review again"
	case !SamePlan(r.Plan, in.Plan):
		return "the plan is another one since; review again"
	case in.Now.Sub(r.At) > Lifetime:
		return fmt.Sprintf("it is older than %s; review again", hours(Lifetime))
	case !in.echoes(r) && !slices.ContainsFunc(in.Rules, func(rule Rule) bool { return !rule.Echo && in.asks(rule, r) }) && len(in.Rules) > 0:
		return "its text does not name the commit; review again, with " + in.named().Short() + " in it"
	}
	return ""
}

// SamePlan reports whether given names the plan, whole or by at least its first 12
// digits.
func SamePlan(given, plan pipeline.Digest) bool {
	const fewest = len("sha256:") + 12
	return given == plan || len(given) >= fewest && strings.HasPrefix(string(plan), string(given))
}

func hours(d time.Duration) string { return fmt.Sprintf("%d hours", int(d.Hours())) }

// wrote reports whether the reviewer is one of the authors, by any name.
func (in *Input) wrote(r *Review) bool {
	return slices.ContainsFunc(append([]string{r.By}, r.Names...), func(name string) bool { return isOneOf(name, in.Authors) })
}

// isOneOf errs on the side of yes: equal but for case, or the first part of an address.
func isOneOf(name string, people []Person) bool {
	return name != "" && slices.ContainsFunc(people, func(p Person) bool {
		first, _, _ := strings.Cut(p.Email, "@")
		return strings.EqualFold(name, p.Name) || strings.EqualFold(name, p.Email) || strings.EqualFold(name, first)
	})
}

// Others are those of names that are none of the authors: whose approval can count.
func Others(names []string, authors []Person) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return isOneOf(name, authors) })
}

// eligible reports whether some rule asks the reviewer. Without rules anybody may
// say something.
func (in *Input) eligible(r *Review) bool {
	return len(in.Rules) == 0 || slices.ContainsFunc(in.Rules, func(rule Rule) bool { return in.asks(rule, r) })
}

// asks reports whether the rule asks the reviewer.
func (in *Input) asks(rule Rule, r *Review) bool {
	switch {
	case rule.Nobody != "":
		return false
	case len(rule.Approvers)+len(rule.Owners) == 0:
		return true
	}
	people := in.people(rule)
	return slices.ContainsFunc(append([]string{r.By}, r.Names...), func(name string) bool { return slices.Contains(people, name) })
}

// people are the members of the groups of a rule, or its owners, sorted; none when it
// asks anybody.
func (in *Input) people(rule Rule) []string {
	out := in.owners(rule)
	for _, g := range in.Groups {
		if slices.Contains(rule.Approvers, g.Name) {
			out = append(out, g.Members...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// count counts different people. One who goes by several names is one.
func (in *Input) count(rule Rule, reviews []Review) int {
	var counted [][]string
	for _, r := range reviews {
		names := append([]string{r.By}, r.Names...)
		known := slices.ContainsFunc(counted, func(other []string) bool {
			return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(other, n) })
		})
		if !known && in.asks(rule, &r) && (!rule.Echo || in.echoes(&r)) {
			counted = append(counted, names)
		}
	}
	return len(counted)
}

func who(reviews []Review) []string {
	var out []string
	for _, r := range reviews {
		out = append(out, r.By)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func refused(r Review) string {
	if r.Comment == "" {
		return "refused by " + r.By
	}
	return "refused by " + r.By + ": " + r.Comment
}

// waiting says what is missing, rule by rule.
func (in *Input) waiting(needs []pipeline.Need) string {
	var parts []string
	for _, n := range needs {
		if left := n.Want - n.Have; left > 0 {
			naming := ""
			if n.Echo {
				naming = " with " + in.named().Short() + " in its text"
			}
			if covered(&n, needs) {
				continue
			}
			parts = append(parts, fmt.Sprintf("%s of %s%s%s", approvals(left), n.Asked(), naming, inBrackets(in.nobody(&n))))
		}
	}
	slices.Sort(parts)
	return "needs " + some(slices.Compact(parts))
}

// nobody says why as things are nobody can give what is needed, "" when somebody can.
func (in *Input) nobody(n *pipeline.Need) string {
	if len(n.Owners) > 0 || n.Nobody != "" {
		return in.unowned(n)
	}
	if len(n.Approvers) == 0 || len(n.People) > 0 {
		return ""
	}
	missing := slices.DeleteFunc(slices.Clone(n.Approvers), func(name string) bool {
		return slices.ContainsFunc(in.Groups, func(g pipeline.Group) bool { return g.Name == name })
	})
	if len(missing) > 0 {
		return "the policy of the default branch has no group " + strings.Join(missing, " or ") + ", so nobody can give it"
	}
	return "nobody is in it but who wrote it, and their word does not count"
}

func inBrackets(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

func approvals(n int) string {
	if n == 1 {
		return "1 approval"
	}
	return fmt.Sprintf("%d approvals", n)
}
