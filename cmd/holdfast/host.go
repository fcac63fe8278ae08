package main

import (
	"fmt"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

func (a *app) hostCmd() *cobra.Command {
	return cli.Group("host", "Hosts whose agents back up to this appliance", a.hostEnroll(), a.hostList(), a.hostShow(), a.hostSet(), a.hostDelete())
}

func (a *app) hostEnroll() *cobra.Command {
	return &cobra.Command{Use: "enroll NAME", Short: "Make a one-time access key for a host's agent", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		var k api.EnrolKey
		if err := a.call(c.Context(), "POST", "/v1/hosts", api.HostSpec{Name: args[0]}, &k); err != nil {
			return err
		}
		return a.print(k, func(p *printer) {
			p.line("Access key for %s, good once, until %s:\n\n%s\n", cli.Clean(k.Name), k.Expires.Local().Format("2006-01-02 15:04"), k.Key)
			p.line("On the host:\n  holdfast-agent enroll --data DIR --server %s --key KEY", k.Server)
		})
	}}
}

func (a *app) hostList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List hosts", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		var hs []api.Host
		if err := a.call(c.Context(), "GET", "/v1/hosts", nil, &hs); err != nil {
			return err
		}
		return a.print(hs, func(p *printer) {
			if len(hs) == 0 {
				p.line("No host yet; next: holdfast host enroll NAME")
				return
			}
			p.row("NAME", "STATE", "LABEL", "SEEN", "VMS", "PRODUCT", "AGENT", "ID")
			for _, h := range hs {
				p.row(h.Name, h.State, label(h.Protected), when(h.Seen), h.VMs, h.Product, h.Agent, h.ID)
			}
		})
	}}
}

func (a *app) hostDelete() *cobra.Command {
	var yes bool
	c := &cobra.Command{Use: "delete NAME", Short: "Remove a host and revoke its certificate; its sets stay", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		loss := fmt.Sprintf("The agent of host %q will be turned away for good; to come back it must be enrolled anew. Its backup sets stay.", args[0])
		if err := a.confirm(yes, loss); err != nil {
			return err
		}
		var h api.Host
		if err := a.call(c.Context(), "DELETE", "/v1/hosts/"+url.PathEscape(args[0]), nil, &h); err != nil {
			return err
		}
		return a.print(h, func(p *printer) { p.line("Host %s is removed.", cli.Clean(h.Name)) })
	}}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// label is how lists show what is protected.
func label(protected bool) string {
	if protected {
		return "protected"
	}
	return "-"
}

func (a *app) vmCmd() *cobra.Command {
	return cli.Group("vm", "Virtual machines", a.vmSet(), &cobra.Command{Use: "list", Short: "List virtual machines", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		var vms []api.VM
		if err := a.call(c.Context(), "GET", "/v1/vms", nil, &vms); err != nil {
			return err
		}
		return a.print(vms, func(p *printer) {
			if len(vms) == 0 {
				p.line("No virtual machine is known; is an agent online? See: holdfast host list")
				return
			}
			p.row("NAME", "HOST", "STATE", "LABEL", "DISKS", "SIZE", "ID")
			for _, v := range vms {
				p.row(v.Name, v.Host, v.State, label(v.Protected), len(v.Disks), cli.Size(v.Size), v.ID)
				for _, s := range v.Skipped {
					p.row("", "not backed up:", s)
				}
			}
		})
	}})
}
