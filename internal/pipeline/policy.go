package pipeline

import "time"

// Policy is who may do what. It is read from the default branch, never from the
// change that it judges.
type Policy struct {
	// Groups are names of people, as the forge knows them.
	Groups []Group `json:"groups,omitempty"`
	// Changes are rules about changes of this repository.
	Changes []ChangeRule `json:"changes,omitempty"`
	// Secrets are bound to compositions by these rules; a secret without a rule may
	// be used by every composition of the default branch.
	Secrets []SecretRule `json:"secrets,omitempty"`
	// Pools likewise.
	Pools []PoolRule `json:"pools,omitempty"`
	// Requests say who may ask for what. What no rule is about, anybody may ask for
	// whose word counts.
	Requests []RequestRule `json:"requests,omitempty"`
	// Keep, if any, says how long what has happened stays in the record.
	Keep *Keep `json:"keep,omitempty"`
}

// Keep says how long what has happened stays in the record.
type Keep struct {
	Runs KeepRuns `json:"runs"`
	Logs KeepLogs `json:"logs"`
	Pos  Position `json:"pos"`
}

// KeepRuns bounds the runs that have ended: those that are older go, and those before
// the latest Count of their composition.
type KeepRuns struct {
	Age   Duration `json:"age"`
	Count int      `json:"count"`
}

// KeepLogs bounds the age of logs; the changes that followers read are kept as long.
type KeepLogs struct {
	Age Duration `json:"age"`
}

// DefaultKeep is for a policy that does not say: a year or a thousand runs of each
// composition, and logs for 90 days. The schema has the same.
func DefaultKeep() Keep {
	const day = 24 * time.Hour
	return Keep{Runs: KeepRuns{Age: Duration(365 * day), Count: 1000}, Logs: KeepLogs{Age: Duration(90 * day)}}
}

// RequestRule gives members of groups leave to ask for something, and takes it from
// everybody else whom no other rule gives it to.
type RequestRule struct {
	Name string `json:"name"`
	// Verbs are some of run, cancel, retry and resolve.
	Verbs []string `json:"verbs"`
	// Compositions are patterns; none means all.
	Compositions []string `json:"compositions,omitempty"`
	// By are groups of the policy.
	By  []string `json:"by"`
	Pos Position `json:"pos"`
}

// Group is a named list of people.
type Group struct {
	Name    string   `json:"name"`
	Members []string `json:"members"`
	Pos     Position `json:"pos"`
}

// ChangeRule demands reviews of changes that touch something.
type ChangeRule struct {
	Name string   `json:"name"`
	Pos  Position `json:"pos"`
	// Paths and Compositions are patterns; a change that meets one of either is
	// meant. Both empty mean every change.
	Paths        []string `json:"paths,omitempty"`
	Compositions []string `json:"compositions,omitempty"`
	// Approvers, Count and Echo as in Gate.
	Approvers []string `json:"approvers,omitempty"`
	Count     int      `json:"count"`
	Echo      bool     `json:"sha_echo,omitempty"`
	// Codeowners: besides, an owner of each path that the rule is about.
	Codeowners bool `json:"codeowners,omitempty"`
}

// Owners is what the file CODEOWNERS of a commit says.
type Owners struct {
	// File is where it lies.
	File string `json:"file,omitempty"`
	// Problem says why nobody can be told to own anything, "" when that can be told.
	Problem string `json:"problem,omitempty"`
	// Rules in the order of the file; of those that match a path the last counts.
	Rules []OwnerRule `json:"rules,omitempty"`
}

// OwnerRule says whose the paths are that a pattern matches.
type OwnerRule struct {
	Pattern string `json:"pattern"`
	// Owners are named as members of a Group are, or by e-mail address; with none the
	// paths are nobody's.
	Owners []string `json:"owners,omitempty"`
	Line   int      `json:"line"`
}

// SecretRule lists the compositions, as patterns, that may use a secret, the branches
// whose runs may, and the source repositories whose runs may: nil for all, and those of
// the ops repository itself in any case. Untrusted: of the repositories that are named,
// runs of any branch may, and of pull requests but those of forks.
type SecretRule struct {
	Secret       SecretName `json:"secret"`
	Compositions []string   `json:"compositions,omitempty"`
	Branches     []string   `json:"branches,omitempty"`
	Repositories []string   `json:"repositories,omitzero"`
	Untrusted    bool       `json:"untrusted,omitempty"`
	Pos          Position   `json:"pos"`
}

// PoolRule lists the compositions, as patterns, that may use a pool, and the branches,
// as patterns, whose runs may; none means all. A composition is what its branch says
// that it is, so that its name alone keeps nobody out who may push a branch.
type PoolRule struct {
	Pool         PoolName `json:"pool"`
	Compositions []string `json:"compositions"`
	Branches     []string `json:"branches,omitempty"`
	Pos          Position `json:"pos"`
}
