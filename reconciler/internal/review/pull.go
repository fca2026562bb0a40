package review

import (
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// Standing is what a forge says of somebody at this moment.
type Standing struct {
	// Writes: may push to the repository.
	Writes bool
	// Teams are those, written @ORG/TEAM, that the person is an active member of.
	Teams []string
	// Known is the number of the account that had the login when it was first met.
	Known int64
}

// Latest returns the last review of each account that says anything: comments and
// reviews that were not submitted do not, and do not take an earlier word back. Those
// of accounts that are gone are returned all.
func Latest(all []pipeline.PullReview) []pipeline.PullReview {
	var out []pipeline.PullReview
	at := map[int64]int{}
	for _, r := range all {
		switch r.State {
		case "APPROVED", "CHANGES_REQUESTED", "DISMISSED":
		default:
			continue
		}
		if i, ok := at[r.By.ID]; ok && r.By.ID != 0 {
			out[i] = r
			continue
		}
		at[r.By.ID] = len(out)
		out = append(out, r)
	}
	return out
}

// OfPull is the review of somebody at a forge, which proves who gave it. head is that
// of the pull request as it is: a request for changes holds for every head until who
// made it takes it back.
func OfPull(r pipeline.PullReview, head pipeline.CommitID, s Standing) Review {
	out := Review{
		Review: pipeline.Review{By: r.By.Login, Approve: r.State == "APPROVED", At: r.At, Comment: plain(r.Body, mostComment)},
		Names:  []string{r.By.Identity()}, Signed: true, Head: r.Commit,
	}
	if r.State == "CHANGES_REQUESTED" {
		out.Head = head
	}
	switch {
	case r.By.ID == 0:
		out.By, out.Void = "ghost", "the account that gave it is gone"
	case r.State == "DISMISSED":
		out.Void = "it was dismissed"
	case r.By.Bot:
		out.Void = "it is not a person's"
	case !s.Writes:
		out.Void = r.By.Login + " may not write to the repository"
	case s.Known != 0 && s.Known != r.By.ID:
		// The login alone would let whoever takes it over approve.
		out.Void = "the login " + r.By.Login + " was another account's; name this one in the policy as " + r.By.Identity()
	}
	return out
}

// Members returns the groups with the identities of those accounts in them that a group
// names by login, by id:NUMBER, or by a team that they are in. Logins of accounts that
// they did not belong to at first name nobody.
func Members(groups []pipeline.Group, people map[pipeline.Account]Standing) []pipeline.Group {
	out := make([]pipeline.Group, len(groups))
	for i, g := range groups {
		out[i] = g
		out[i].Members = slices.Clone(g.Members)
		for a, s := range people {
			if a.ID != 0 && slices.ContainsFunc(g.Members, func(m string) bool { return names(m, a, s) }) {
				out[i].Members = append(out[i].Members, a.Identity())
			}
		}
		slices.Sort(out[i].Members)
		out[i].Members = slices.Compact(out[i].Members)
	}
	return out
}

func names(member string, a pipeline.Account, s Standing) bool {
	switch {
	case member == a.Identity():
		return true
	case strings.HasPrefix(member, "@"):
		return slices.Contains(s.Teams, member)
	}
	return asciiFold(member) == asciiFold(a.Login) && (s.Known == 0 || s.Known == a.ID)
}

// asciiFold makes letters small as forges do with logins, and leaves look-alikes of
// other scripts apart.
func asciiFold(s string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		return c
	}, s)
}

// Teams are the members of groups that are teams at the forge.
func Teams(groups []pipeline.Group) []string {
	var out []string
	for _, g := range groups {
		for _, m := range g.Members {
			if strings.HasPrefix(m, "@") {
				out = append(out, m)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Behind are the people of a pull request, as Input.Authors wants them.
func Behind(p pipeline.PullPeople) []Person {
	var out []Person
	for _, a := range p.Accounts {
		if a.ID != 0 {
			out = append(out, Person{Name: a.Identity()})
		}
	}
	for _, n := range p.Named {
		name, rest, _ := strings.Cut(n, "<")
		email, _, _ := strings.Cut(rest, ">")
		out = append(out, Person{Name: strings.TrimSpace(name), Email: strings.TrimSpace(email)})
	}
	return out
}

// Command is what the first line of a comment asks for.
type Command struct {
	// Verb is the first word, Rest what follows it.
	Verb, Rest string
}

const commandPrefix = "/maestro"

// ParseCommand reads a comment. Only its first line counts, and only when that begins
// with /maestro: what is quoted or shown as code asks for nothing.
func ParseCommand(body string) (Command, bool) {
	line, _, _ := strings.Cut(body, "\n")
	rest, ok := strings.CutPrefix(strings.TrimRight(line, " \t\r"), commandPrefix)
	if !ok || rest != "" && rest[0] != ' ' && rest[0] != '\t' {
		return Command{}, false
	}
	verb, rest, _ := strings.Cut(strings.TrimSpace(rest), " ")
	return Command{Verb: plain(verb, 40), Rest: strings.TrimSpace(rest)}, true
}

// fewestDigits of a head tell it from others that somebody may have made on purpose.
const fewestDigits = 12

// NamesHead reports whether text names the commit, whole or by its first 12 digits at
// least.
func NamesHead(text string, head pipeline.CommitID) bool {
	return len(text) >= fewestDigits && strings.HasPrefix(string(head), strings.ToLower(text))
}
