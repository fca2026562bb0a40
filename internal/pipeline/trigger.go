package pipeline

// Trigger says which events start a run.
type Trigger struct {
	Pos Position `json:"pos"`
	// Exactly one of these is set. Push: branches and paths are patterns; no paths
	// means any change.
	Push        *PushTrigger        `json:"push,omitempty"`
	PullRequest *PullRequestTrigger `json:"pull_request,omitempty"`
	Tag         *TagTrigger         `json:"tag,omitempty"`
	Cron        *CronTrigger        `json:"cron,omitempty"`
	After       *AfterTrigger       `json:"after,omitempty"`
	Webhook     *WebhookTrigger     `json:"webhook,omitempty"`
	// Manual: a person may ask for a run.
	Manual *ManualTrigger `json:"manual,omitempty"`
	// Params given to the run, as a JSON object; they may depend on the event.
	Params Expr `json:"params,omitzero"`
}

// Kind names what fires the trigger, as Event.Kind.
func (t *Trigger) Kind() string {
	switch {
	case t.Push != nil:
		return EventPush
	case t.PullRequest != nil:
		return EventPullRequest
	case t.Tag != nil:
		return EventTag
	case t.Cron != nil:
		return EventCron
	case t.After != nil:
		return EventAfter
	case t.Webhook != nil:
		return EventWebhook
	}
	return EventManual
}

// Repo names the source repository that the trigger is about, "" for the ops
// repository.
func (t *Trigger) Repo() string {
	switch {
	case t.Push != nil:
		return t.Push.Repo
	case t.PullRequest != nil:
		return t.PullRequest.Repo
	case t.Tag != nil:
		return t.Tag.Repo
	}
	return ""
}

// Paths are the patterns that a changed path must meet, none for any change.
func (t *Trigger) Paths() []string {
	switch {
	case t.Push != nil:
		return t.Push.Paths
	case t.PullRequest != nil:
		return t.PullRequest.Paths
	}
	return nil
}

// PushTrigger fires when a branch moves.
type PushTrigger struct {
	// Repo names the source repository; "" is the ops repository.
	Repo     string   `json:"repo,omitempty"`
	Branches []string `json:"branches"`
	Paths    []string `json:"paths,omitempty"`
}

// PullRequestTrigger fires when a change is proposed and when its head moves.
type PullRequestTrigger struct {
	// Repo as in PushTrigger.
	Repo string `json:"repo,omitempty"`
	// Branches are patterns of the branch that the change is to be merged into.
	Branches []string `json:"branches"`
	Paths    []string `json:"paths,omitempty"`
}

// TagTrigger fires when a tag is made or moved.
type TagTrigger struct {
	// Repo as in PushTrigger.
	Repo string   `json:"repo,omitempty"`
	Tags []string `json:"tags"` // patterns
}

// CronTrigger fires by the clock, on the tip of the default branch.
type CronTrigger struct {
	// Schedule is five fields: minute, hour, day of month, month, day of week.
	Schedule string `json:"schedule"`
	// Zone is a name of the IANA time zone database.
	Zone string `json:"zone"`
}

// AfterTrigger fires when a run of another composition has ended.
type AfterTrigger struct {
	Composition CompositionName `json:"composition"`
	// Result is "success", "failure" (any bad outcome) or "any".
	Result   string   `json:"result"`
	Branches []string `json:"branches,omitempty"`
}

// WebhookTrigger fires when somebody posts to its address with its secret.
type WebhookTrigger struct {
	ID     string     `json:"id"`
	Secret SecretName `json:"secret"`
	// Payload is what the body must be; nil allows any JSON object.
	Payload *Type `json:"payload,omitempty"`
}

// ManualTrigger fires when a person asks.
type ManualTrigger struct {
	// Approvers are groups of the policy whose members may; none means everybody
	// who may push.
	Approvers []string `json:"approvers,omitempty"`
}
