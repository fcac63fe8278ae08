package main

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

func poolPath(name string) string { return "/v1/pools/" + url.PathEscape(name) }

func (a *app) poolSet() *cobra.Command {
	var rename, maintenance, replace, add string
	var quotas []string
	var detach bool
	c := &cobra.Command{
		Use:   "set NAME (--rename NAME | --quota SIZE | --maintenance on|off | --replace-path OLD=NEW | --add-path DIR)",
		Short: "Change a pool",
		Long: "Change a pool. In maintenance it takes no new backups, and restores go on. A path is replaced where a folder was moved, or, in a striped pool, where a\n" +
			"path is lost: the new, empty one is filled while the pool is in use.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			change := api.PoolChange{Rename: rename}
			if err := quotaChange(&change, quotas); err != nil {
				return err
			}
			switch maintenance {
			case "":
			case "on", "off":
				on := maintenance == "on"
				change.Maintenance = &on
			default:
				return holdfast.Errorf(holdfast.Invalid, "", "maintenance %q", maintenance).Advise("use on or off")
			}
			if replace != "" {
				from, to, ok := cutLast(replace, "=")
				if !ok || from == "" || to == "" {
					return holdfast.Errorf(holdfast.Invalid, "", "%q is not OLD=NEW", replace).Advise("name the path as 'holdfast pool show %s' does, then = and the new one", args[0])
				}
				change.ReplacePath = &api.PathChange{From: from, To: to}
			}
			if add != "" {
				abs, err := absolute([]string{add})
				if err != nil {
					return err
				}
				change.AddPath = abs[0]
			}
			return a.changePool(c, args[0], change, detach)
		},
	}
	c.Flags().StringVar(&rename, "rename", "", "new name")
	c.Flags().StringArrayVar(&quotas, "quota", nil, "bytes that the pool may take, or DIR=SIZE on one path; none takes the quota away")
	c.Flags().StringVar(&maintenance, "maintenance", "", "on: no new backups; off: as usual")
	c.Flags().StringVar(&replace, "replace-path", "", "OLD=NEW: give a path another place")
	c.Flags().StringVar(&add, "add-path", "", "one more folder for a pool over several")
	c.Flags().BoolVar(&detach, "detach", false, "do not wait until a new path is filled")
	return c
}

func quotaChange(change *api.PoolChange, quotas []string) error {
	if len(quotas) == 0 {
		return nil
	}
	total, each, err := parseQuotas(quotas)
	if err != nil {
		return err
	}
	if len(each) < len(quotas) {
		change.Quota = &total
	}
	if len(each) > 0 {
		change.PathQuotas = each
	}
	return nil
}

func (a *app) changePool(c *cobra.Command, name string, change api.PoolChange, detach bool) error {
	var x api.PoolChanged
	if err := a.call(c.Context(), "PATCH", poolPath(name), change, &x); err != nil {
		return err
	}
	if x.Run != nil && !detach {
		run, err := a.await(c.Context(), *x.Run, nil)
		if err != nil {
			return err
		}
		x.Run = &run
	}
	return a.print(x, func(p *printer) {
		switch {
		case x.Run == nil:
			p.line("Pool %s is changed.", cli.Clean(x.Pool.Name))
		case api.Final(x.Run.State):
			p.line("Pool %s has its full redundancy again.", cli.Clean(x.Pool.Name))
		default:
			p.line("The new path is being filled; see it with: holdfast run show %s", x.Run.ID)
		}
	})
}

func (a *app) poolDelete() *cobra.Command {
	var yes, forget bool
	c := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a pool that holds no set, or take one off the appliance (--forget)",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var x api.Pool
			if err := a.call(c.Context(), "GET", poolPath(args[0]), nil, &x); err != nil {
				return err
			}
			loss := fmt.Sprintf("This removes the pool %s from its place for good.", cli.Clean(x.Name))
			path := poolPath(args[0])
			if forget {
				path += "?forget=true"
				loss = fmt.Sprintf("This takes the pool %s and its sets off this appliance. Its data stays where it is; 'holdfast pool import' takes it back.", cli.Clean(x.Name))
			}
			if err := a.confirm(yes, loss); err != nil {
				return err
			}
			if err := a.call(c.Context(), "DELETE", path, nil, &x); err != nil {
				return err
			}
			return a.print(x, func(p *printer) {
				if forget {
					p.line("Pool %s is off the appliance; its data is where it was.", cli.Clean(x.Name))
					return
				}
				p.line("Pool %s is deleted.", cli.Clean(x.Name))
			})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	c.Flags().BoolVar(&forget, "forget", false, "keep the pool's data and its sets; only the appliance forgets them")
	return c
}

func (a *app) poolCheck() *cobra.Command {
	return &cobra.Command{
		Use:   "check NAME",
		Short: "Try a pool's target out in a scratch area beside it; the pool itself is not touched",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var r api.CheckReport
			return a.job(c, poolPath(args[0])+"/check", &r, func(p *printer) {
				p.line("%d of %d checks passed.", r.Passed, r.Checks)
				for _, f := range r.Failed {
					p.row("FAILED", f.Name, f.Text)
				}
				for _, l := range r.Left {
					p.row("LEFT BEHIND", l)
				}
			})
		},
	}
}
