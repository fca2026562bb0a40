package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/maestro-cd/maestro/internal/pipeline"
)

func newAgents() *cobra.Command {
	var c client
	var o output
	cmd := &cobra.Command{
		Use: "agents", Short: "List agents, or invite one", Args: cobra.NoArgs,
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
				return []string{string(a.ID), oneLine(a.Name), string(a.Pool), string(a.State), fmt.Sprint(len(a.Running)), ago(a.SeenAt)}
			}, func(a *agent) string { return string(a.ID) })
		},
	}
	serverFlag(cmd, &c)
	o.flags(cmd)
	cmd.AddCommand(newInvite())
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
			if data == "" {
				var err error
				if data, err = runningData(cmd.Context()); err != nil {
					return err
				}
			}
			var resp inviteResponse
			if err := askAdmin(cmd.Context(), data, "/invite", req, &resp); err != nil {
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
	cmd.Flags().BoolVar(&req.Untrusted, "untrusted", false, "the agent may run what nobody approved, and nothing else")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print token, expiry and address as JSON")
	return cmd
}
