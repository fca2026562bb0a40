package review

import (
	"fmt"
	"slices"
	"strings"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

// RuleOf is the rule by which a need of a change is judged.
func RuleOf(n pipeline.Need) Rule {
	return Rule{
		Name: n.Rule, Approvers: n.Approvers, Count: n.Want, Echo: n.Echo,
		Owners: n.Owners, Paths: n.Paths, More: n.More, Nobody: n.Nobody,
	}
}

// OwningTeams are the teams that have to be known to judge needs, sorted.
func OwningTeams(needs []pipeline.Need) []string {
	var out []string
	for _, n := range needs {
		for _, o := range n.Owners {
			if isTeam(o) {
				out = append(out, o)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func isTeam(owner string) bool { return strings.HasPrefix(owner, "@") }

func isAddress(owner string) bool { return strings.Contains(owner, "@") && !isTeam(owner) }

// owners are the names of those whom a rule asks as owners. A forge says who is in a
// team and tells no addresses; elsewhere a team is the group of the policy that is named
// like it, and an address the name of a key.
func (in *Input) owners(rule Rule) []string {
	if len(rule.Owners) == 0 {
		return nil
	}
	if in.AtForge {
		known := slices.DeleteFunc(slices.Clone(rule.Owners), isAddress)
		return Members([]pipeline.Group{{Members: known}}, in.Standing)[0].Members
	}
	var out []string
	for _, o := range rule.Owners {
		if !isTeam(o) {
			out = append(out, o)
			continue
		}
		for _, g := range in.Groups {
			if g.Name == groupOf(o) {
				out = append(out, g.Members...)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// groupOf is the group that stands for a team where there is no forge.
func groupOf(team string) string {
	_, name, _ := strings.Cut(team, "/")
	return name
}

// unowned says why no owner can give what is needed, "" when one can.
func (in *Input) unowned(n *pipeline.Need) string {
	switch {
	case n.Nobody != "":
		return fmt.Sprintf("on the default branch %s; who may pass branch protection has to mend that", n.Nobody)
	case len(n.People) > 0:
		return ""
	case len(in.owners(RuleOf(*n))) > 0:
		return "nobody owns it but who wrote it, and their word does not count"
	case in.AtForge:
		return "an e-mail address does not tell whose review it is; CODEOWNERS has to name an account"
	}
	return "the policy of the default branch has no members of group " + groupOf(n.Owners[0]) + ", so nobody can give it"
}

// orOwns ends why somebody is not asked, where owners are.
func (in *Input) orOwns() string {
	if slices.ContainsFunc(in.Rules, func(r Rule) bool { return len(r.Owners) > 0 }) {
		return ", and owns nothing of it"
	}
	return ""
}

// covered reports whether what is missing is given as soon as some owner approves: it is
// one approval of anybody, and owners are asked for theirs.
func covered(n *pipeline.Need, needs []pipeline.Need) bool {
	if n.Want-n.Have > 1 || n.Echo || len(n.Approvers)+len(n.Owners) > 0 || n.Nobody != "" {
		return false
	}
	return slices.ContainsFunc(needs, func(o pipeline.Need) bool { return len(o.Owners) > 0 && o.Have < o.Want })
}

// some joins what is missing, and counts what is too much to be read.
func some(parts []string) string {
	const most = 4
	if left := len(parts) - most; left > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(parts[:most], " and "), left)
	}
	return strings.Join(parts, " and ")
}
