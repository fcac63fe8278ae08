package main

import (
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

func (a *app) runCmd() *cobra.Command {
	return cli.Group("run", "Runs: executions of backups and restores", a.runList(), a.runShow(), a.runLog(), a.runFollow(), a.runReport(), a.runCancel())
}

func (a *app) runList() *cobra.Command {
	limit := 20
	c := &cobra.Command{Use: "list", Short: "List runs, newest first", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		var rs []api.Run
		if err := a.call(c.Context(), "GET", "/v1/runs?limit="+strconv.Itoa(limit), nil, &rs); err != nil {
			return err
		}
		return a.print(rs, func(p *printer) {
			if len(rs) == 0 {
				p.line("Nothing has run yet; next: holdfast backup VM --pool NAME")
				return
			}
			p.row("RUN", "JOB", "KIND", "STATE", "STARTED", "VMS", "POOL")
			for _, r := range rs {
				p.row(r.ID, orDash(r.Job), r.Kind, r.State, when(r.Created), len(r.Tasks), r.Pool)
			}
		})
	}}
	c.Flags().IntVar(&limit, "limit", limit, "how many")
	return c
}

func (a *app) runShow() *cobra.Command {
	var wait bool
	c := &cobra.Command{Use: "show RUN", Short: "Show a run", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		var r api.Run
		if err := a.call(c.Context(), "GET", "/v1/runs/"+url.PathEscape(args[0]), nil, &r); err != nil {
			return err
		}
		if wait {
			return a.finish(c, r, false)
		}
		return a.print(r, func(p *printer) {
			p.row("run", r.ID)
			p.row("state", runLine(r))
			p.row("started", when(r.Created))
			if !r.Ended.IsZero() {
				p.row("ended", when(r.Ended), "after "+span(r.Ended.Sub(r.Created)))
			}
			if r.Error != nil {
				p.row("error", r.Error.Message)
			}
			p.line("")
			a.showRun(p, r)
		})
	}}
	c.Flags().BoolVar(&wait, "wait", false, "follow it to its end")
	return c
}

func (a *app) runCancel() *cobra.Command {
	return &cobra.Command{Use: "cancel RUN", Short: "Cancel a run; sets that are committed stay", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		var r api.Run
		if err := a.call(c.Context(), "POST", "/v1/runs/"+url.PathEscape(args[0])+"/cancel", nil, &r); err != nil {
			return err
		}
		return a.print(r, func(p *printer) { p.line("Run %s is being cancelled.", r.ID) })
	}}
}

func (a *app) catalogCmd() *cobra.Command {
	return cli.Group("catalog", "What the appliance remembers", &cobra.Command{
		Use: "rebuild", Short: "Rebuild the catalog from the pools, which are the truth", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var r api.Rebuilt
			if err := a.job(c, "/v1/catalog/rebuild", &r, func(p *printer) {
				p.line("%s in the pools: %d were missing in the catalog, %d were in it and are gone.", plural(r.Sets, "set"), r.Added, r.Gone)
				rebuiltHolds(p, r)
				for _, e := range r.Errors {
					p.row("UNREADABLE", e)
				}
			}); err != nil {
				return err
			}
			return rebuildError(r)
		},
	})
}
