package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

func (a *app) backupCmd() *cobra.Command {
	var s api.BackupSpec
	var detach bool
	c := &cobra.Command{
		Use:   "backup VM... --pool NAME",
		Short: "Back virtual machines up now",
		Long:  "Back virtual machines up now: everything the first time, then what changed since. VMs are named by name or id.\nInterrupting the command leaves the run going in the daemon.",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			s.VMs = args
			var r api.Run
			if err := a.call(c.Context(), "POST", "/v1/backups", s, &r); err != nil {
				return err
			}
			return a.finish(c, r, detach)
		},
	}
	c.Flags().StringVar(&s.Pool, "pool", "", "the pool that the sets go to")
	c.Flags().BoolVar(&s.Full, "full", false, "read the disks whole instead of what changed")
	c.Flags().StringVar(&s.Compression, "compression", "", "off, fast, default, better or best: how much work new bytes are worth")
	c.Flags().BoolVar(&detach, "detach", false, "start the run and return")
	_ = c.MarkFlagRequired("pool") // fails only for a flag that is not there
	return c
}

// finish waits for a run, unless detached, and shows how it ended.
func (a *app) finish(c *cobra.Command, r api.Run, detach bool) error {
	if detach {
		return a.print(r, func(p *printer) { p.line("Run %s is under way; see it with: holdfast run show %s", r.ID, r.ID) })
	}
	r, err := a.follow(c.Context(), r)
	if err != nil {
		return err
	}
	if err := a.print(r, func(p *printer) { a.showRun(p, r) }); err != nil {
		return err
	}
	return runError(r)
}

// showRun says how each virtual machine fared.
func (a *app) showRun(p *printer, r api.Run) {
	p.row("VM", "HOST", "RESULT", "READ", "SENT", "STORED", "SET")
	for _, t := range r.Tasks {
		var n api.Counts
		for _, d := range t.Disks {
			n.Read, n.Sent, n.Stored = n.Read+d.Read, n.Sent+d.Sent, n.Stored+d.Stored
		}
		if t.Target != "" && t.Target != t.VM {
			t.VM += " as " + t.Target
		}
		p.row(t.VM, t.Host, t.State, cli.Size(n.Read), cli.Size(n.Sent), cli.Size(n.Stored), t.Set)
	}
	for _, t := range r.Tasks {
		for _, d := range t.Disks {
			if d.Reason != "" && r.Kind == "backup" {
				p.line("%s: disk %s was read whole: %s", cli.Clean(t.VM), cli.Clean(d.Name), d.Reason)
			}
		}
		if t.Note != "" {
			p.line("%s: %s", cli.Clean(t.VM), cli.Clean(t.Note))
		}
		if t.Error != nil {
			p.line("%s: %s", cli.Clean(t.VM), cli.Clean(t.Error.Message))
		}
	}
}

func runLine(r api.Run) string {
	return fmt.Sprintf("%s, %s of %s", r.State, r.Kind, plural(len(r.Tasks), "virtual machine"))
}
