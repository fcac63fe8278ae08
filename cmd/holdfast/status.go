package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Show the appliance on one screen", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		var s api.Status
		if err := a.call(c.Context(), "GET", "/v1/status", nil, &s); err != nil {
			return err
		}
		return a.print(s, func(p *printer) {
			p.row("holdfast", s.Version)
			p.row("started", when(s.Started))
			p.row("agents dial", s.Listen)
			p.row("holds", plural(s.Sets, "backup set")+"; the hosts have "+plural(s.VMs, "virtual machine"))
			for _, x := range s.Pools {
				p.row("pool "+x.Name, poolLine(x))
			}
			for _, h := range s.Hosts {
				p.row("host "+h.Name, h.State+", "+plural(h.VMs, "virtual machine"))
			}
			for _, r := range s.Running {
				p.row("run "+r.ID, runLine(r))
			}
			for _, w := range s.Warnings {
				p.row("warning", w)
			}
			switch {
			case len(s.Pools) == 0:
				p.line("\nnext: holdfast pool create main --kind dedup --path DIR")
			case len(s.Hosts) == 0:
				p.line("\nnext: holdfast host enroll NAME")
			}
		})
	}}
}

func (a *app) eventsCmd() *cobra.Command {
	return &cobra.Command{Use: "events", Short: "Show events as they happen, until interrupted", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		resp, err := a.open(c.Context(), "GET", "/v1/events", nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close() // read until one end goes
		lines := bufio.NewScanner(resp.Body)
		for lines.Scan() {
			data, ok := strings.CutPrefix(lines.Text(), "data: ")
			if !ok {
				continue
			}
			if a.json {
				fmt.Fprintln(a.out, data)
				continue
			}
			var e struct {
				Time     string `json:"time"`
				Type     string `json:"type"`
				Severity string `json:"severity"`
				Text     string `json:"text"`
			}
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				return holdfast.Errorf(holdfast.Internal, "read event", "%w", err)
			}
			fmt.Fprintf(a.out, "%s  %-7s  %s  %s\n", e.Time, e.Severity, e.Type, cli.Clean(e.Text))
		}
		if c.Context().Err() != nil {
			return nil // interrupted is how it ends
		}
		return holdfast.Errorf(holdfast.Offline, "read events", "the daemon ended the stream")
	}}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
