package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func newAgents() *cobra.Command {
	var c client
	var o output
	cmd := &cobra.Command{
		Use: "agents", Short: "List agents, invite one, or keep work from one", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			type agent struct {
				pipeline.Agent
				Online  bool              `json:"online"`
				Running []json.RawMessage `json:"running"`
			}
			var list struct {
				Agents []agent `json:"agents"`
			}
			if err := c.get(cmd.Context(), "/agents", nil, &list); err != nil {
				return err
			}
			if len(list.Agents) == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "no agent is enrolled; invite one with: reconciler agents invite")
			}
			return print(cmd.OutOrStdout(), o, "AGENT\tNAME\tPOOL\tSTATE\tTASKS\tSEEN", list.Agents, func(a *agent) []string {
				return []string{string(a.ID), oneLine(a.Name), string(a.Pool), stateOf(&a.Agent, len(a.Running)), fmt.Sprint(len(a.Running)), ago(a.SeenAt)}
			}, func(a *agent) string { return string(a.ID) })
		},
	}
	serverFlag(cmd, &c)
	o.flags(cmd)
	cmd.AddCommand(newInvite(), newPause("pause"), newPause("drain"), newPause("resume"), newRevoke())
	return cmd
}

func newRevoke() *cobra.Command {
	var data string
	cmd := &cobra.Command{
		Use: "revoke AGENT", Short: "End an agent's right to connect, for ever", Args: cobra.ExactArgs(1),
		Long: `End an agent's right to connect: it is turned out within seconds, and its key is never
let in again. What it runs counts as lost after lostAfter; to let that end first, drain
it. The machine may come back with a new identity and a new invitation. AGENT is a name
or an id, as "reconciler agents" lists them. Run it on the reconciler's machine, as its
user.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := fromEnvironment(cmd, "RECONCILER_"); err != nil {
				return err
			}
			var a pipeline.Agent
			if err := askRunning(cmd.Context(), data, "/agents/revoke", revokeRequest{args[0]}, &a); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s (%s) is revoked\n", oneLine(a.Name), a.ID)
			return nil
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "data folder of the running server (the one that runs, by serve or dev)")
	return cmd
}

// stateOf is how an agent looks to whoever looks after it.
func stateOf(a *pipeline.Agent, running int) string {
	s := string(a.State)
	switch {
	case a.Revoked:
		return "revoked"
	case a.Pause == nil:
		return s
	case a.Pause.Drain && running > 0:
		return s + ", " + strings.Replace(a.Pause.String(), "drained", "drains", 1)
	}
	return s + ", " + oneLine(a.Pause.String())
}

// newPause makes the command that keeps work from an agent in one of the ways, or
// gives it work again.
func newPause(verb string) *cobra.Command {
	var data string
	var req pauseRequest
	var d time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use: verb + " AGENT", Args: cobra.ExactArgs(1),
		Long: `An agent that is paused gets no new task; what runs on it goes on. One that drains
goes on with the runs that are at work on it, and begins no other: once it does nothing
it can be stopped without anybody waiting for it. Either lasts until it is resumed, or
for as long as --for says. AGENT is a name or an id, as "reconciler agents" lists them.
Run it on the reconciler's machine, as its user.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := fromEnvironment(cmd, "RECONCILER_"); err != nil {
				return err
			}
			req.Agent, req.Drain, req.Resume, req.For = args[0], verb == "drain", verb == "resume", pipeline.Duration(d)
			var a pipeline.Agent
			if err := askRunning(cmd.Context(), data, "/agents/pause", req, &a); err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), a)
			}
			says := "takes new work"
			if a.Pause != nil {
				says = "is " + a.Pause.String()
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s (%s) %s\n", oneLine(a.Name), a.ID, oneLine(says))
			return nil
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "data folder of the running server (the one that runs, by serve or dev)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the agent as JSON")
	cmd.Short = map[string]string{
		"pause": "Give an agent no new task for a while", "drain": "Give an agent no new run, so that it can be stopped",
		"resume": "Give an agent work again",
	}[verb]
	if verb == "resume" {
		return cmd
	}
	cmd.Example = fmt.Sprintf("  reconciler agents %s build-3 --reason \"new disk\" --for 2h", verb)
	cmd.Flags().StringVar(&req.Reason, "reason", "", "why; everybody sees it whose task waits for the agent")
	cmd.Flags().DurationVar(&d, "for", 0, "for how long (default: until it is resumed)")
	return cmd
}

func newInvite() *cobra.Command {
	var data string
	var req inviteRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use: "invite", Short: "Print a one-time token with which an agent joins a pool", Args: cobra.NoArgs,
		Long: `Print a one-time token with which one agent joins a pool. Run it on the
reconciler's machine, as its user: it asks the server over a socket in the data
folder, which it finds when one server runs. The token is good for 15 minutes and for one agent.`,
		Example: "  reconciler agents invite --pool linux\n  agentd --server http://reconciler:8421 --token-file token",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := fromEnvironment(cmd, "RECONCILER_"); err != nil {
				return err
			}
			var resp inviteResponse
			if err := askRunning(cmd.Context(), data, "/invite", req, &resp); err != nil {
				return err
			}
			if resp.Warning != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", resp.Warning)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), resp)
			}
			fmt.Fprintln(cmd.OutOrStdout(), resp.Token)
			fmt.Fprintf(cmd.ErrOrStderr(), "Good until %s, for one agent. On its machine:\n  agentd --server %s --token-file FILE\n",
				resp.Expires.Format(time.RFC3339), resp.Intake)
			return nil
		},
	}
	cmd.Flags().StringVar(&data, "data", "", "data folder of the running server (the one that runs, by serve or dev)")
	cmd.Flags().StringVar((*string)(&req.Pool), "pool", "default", "the pool that the agent joins")
	cmd.Flags().BoolVar(&req.Untrusted, "untrusted", false, "the agent may run what nobody approved; it gets only tasks that name its pool")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print token, expiry and address as JSON")
	return cmd
}
