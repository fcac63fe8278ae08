package main

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

func (a *app) setCmd() *cobra.Command {
	return cli.Group("set", "Backup sets: virtual machines at points in time", a.setList(), a.setShow(), a.setVerify(), a.setHold(), a.setDelete())
}

func (a *app) setList() *cobra.Command {
	var vm, pool string
	c := &cobra.Command{Use: "list", Short: "List backup sets", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		var sets []api.Set
		q := url.Values{"vm": {vm}, "pool": {pool}}
		if err := a.call(c.Context(), "GET", "/v1/sets?"+q.Encode(), nil, &sets); err != nil {
			return err
		}
		return a.print(sets, func(p *printer) {
			if len(sets) == 0 {
				p.line("No backup set; next: holdfast backup VM --pool NAME")
				return
			}
			p.row("SET", "VM", "POINT IN TIME", "KIND", "LOGICAL", "READ", "SENT", "STORED", "POOL", "NOTE")
			for _, s := range sets {
				p.row(s.ID, s.VM, when(s.Time), s.Kind, cli.Size(s.Logical), cli.Size(s.Read), cli.Size(s.Sent), cli.Size(s.Stored), s.Pool, s.Note)
			}
		})
	}}
	c.Flags().StringVar(&vm, "vm", "", "only this virtual machine's (name or id)")
	c.Flags().StringVar(&pool, "pool", "", "only in this pool")
	return c
}

func (a *app) getSet(c *cobra.Command, id string) (api.Set, error) {
	var s api.Set
	err := a.call(c.Context(), "GET", "/v1/sets/"+url.PathEscape(id), nil, &s)
	return s, err
}

func (a *app) setShow() *cobra.Command {
	return &cobra.Command{Use: "show SET", Short: "Show a backup set", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		s, err := a.getSet(c, args[0])
		if err != nil {
			return err
		}
		return a.print(s, func(p *printer) {
			p.row("set", s.ID)
			p.row("virtual machine", s.VM, s.VMID)
			p.row("host", s.Host)
			p.row("pool", s.Pool)
			p.row("point in time", when(s.Time))
			p.row("kind", s.Kind, s.Parent)
			p.row("consistency", s.Consistency)
			if s.Note != "" {
				p.row("note", s.Note)
			}
			if s.Changed > 0 {
				p.row("changed", cli.Size(s.Changed), fmt.Sprintf("%.1f %% of the disks", percent(s.Changed, s.Logical)))
			}
			p.row("read", cli.Size(s.Read), "of "+cli.Size(s.Logical))
			p.row("sent", cli.Size(s.Sent), fmt.Sprintf("%.0f %% of what was read", percent(s.Sent, s.Read)))
			p.row("stored", cli.Size(s.Stored))
			p.line("")
			p.row("DISK", "NAME", "SIZE", "READ", "SENT", "STORED", "READ WHOLE BECAUSE")
			for i, d := range s.Disks {
				p.row(i, d.Name, cli.Size(d.Size), cli.Size(d.Read), cli.Size(d.Sent), cli.Size(d.Stored), d.Reason)
			}
		})
	}}
}

func (a *app) setVerify() *cobra.Command {
	return &cobra.Command{Use: "verify SET", Short: "Read a set back and check every byte", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		return a.verify(c, "/v1/sets/"+url.PathEscape(args[0])+"/verify")
	}}
}

func (a *app) setDelete() *cobra.Command {
	var yes bool
	c := &cobra.Command{Use: "delete SET", Short: "Delete a set for good; every other set stays whole", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		s, err := a.getSet(c, args[0])
		if err != nil {
			return err
		}
		loss := fmt.Sprintf("This deletes the point in time %s of %s (%s, %s) for good. Other points in time are not affected.",
			s.Time.Local().Format("2006-01-02 15:04:05"), cli.Clean(s.VM), plural(len(s.Disks), "disk"), cli.Size(s.Logical))
		if err := a.confirm(yes, loss); err != nil {
			return err
		}
		if err := a.call(c.Context(), "DELETE", "/v1/sets/"+url.PathEscape(s.ID), nil, &s); err != nil {
			return err
		}
		return a.print(s, func(p *printer) {
			p.line("Set %s is deleted. Its space comes back with: holdfast pool gc %s", s.ID, cli.Clean(s.Pool))
		})
	}}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// rebuiltHolds says what became of holds.
func rebuiltHolds(p *printer, r api.Rebuilt) {
	if r.Held > 0 {
		p.line("%s taken over with them.", plural(r.Held, "hold"))
	}
	for _, n := range r.Notes {
		p.row("NOTE", n)
	}
}

// rebuildError makes sets that could not be read the command's failure: a listing that lacks them must not look complete.
func rebuildError(r api.Rebuilt) error {
	if len(r.Errors) == 0 {
		return nil
	}
	return &cli.ExitError{Code: cli.Partial, Err: holdfast.Errorf(holdfast.Corrupt, "rebuild catalog", "%s could not be read", plural(len(r.Errors), "thing")).
		Advise("'holdfast pool verify NAME' says what is damaged")}
}
