package main

import (
	"fmt"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/appliance/api"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

func (a *app) networkCmd() *cobra.Command {
	return cli.Group("network", "Networks that data goes through", a.networkList(), a.networkCreate(), a.networkDelete())
}

func (a *app) networkList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "List networks, and the addresses of the appliance and of hosts", Args: cobra.NoArgs,
		Long: "List the networks that have names, the addresses at which agents can reach the appliance, and those that each agent reports. Loopback and\n" +
			"link-local addresses are left out.\n\n" + cli.ExitHelp,
		RunE: func(c *cobra.Command, _ []string) error {
			var l api.NetworkList
			if err := a.call(c.Context(), "GET", "/v1/networks", nil, &l); err != nil {
				return err
			}
			return a.print(l, func(p *printer) {
				if len(l.Networks) > 0 {
					p.row("NETWORK", "CIDR")
					for _, n := range l.Networks {
						p.row(n.Name, n.CIDR)
					}
					p.line("")
				}
				p.row("WHO", "ADDRESS", "INTERFACE", "NETWORK", "USE")
				for _, x := range l.Appliance {
					p.row("(appliance)", x.Address, x.Interface, x.Network)
				}
				for _, h := range l.Hosts {
					for _, x := range h.Addresses {
						p.row(h.Host, x.Address, x.Interface, x.Network)
					}
					if h.DataNetwork+h.Egress != "" {
						p.row(h.Host, "", "", "", wayText(h.DataNetwork, h.Egress))
					} else if len(h.Addresses) == 0 {
						p.row(h.Host, "(none reported; "+h.State+")")
					}
				}
			})
		}}
}

// wayText says which way a host's data goes.
func wayText(network, egress string) string {
	switch {
	case network == "" && egress == "":
		return "as the host's routing has it"
	case egress == "":
		return "data through " + network
	case network == "":
		return "data from " + egress
	}
	return fmt.Sprintf("data from %s through %s", egress, network)
}

func (a *app) networkCreate() *cobra.Command {
	return &cobra.Command{Use: "create NAME CIDR", Short: "Give a network a name", Args: cobra.ExactArgs(2), Long: "Give a network a name, like: network create backup 192.0.2.0/24\n\n" + cli.ExitHelp,
		RunE: func(c *cobra.Command, args []string) error {
			var n api.Network
			if err := a.call(c.Context(), "POST", "/v1/networks", api.Network{Name: args[0], CIDR: args[1]}, &n); err != nil {
				return err
			}
			return a.print(n, func(p *printer) {
				p.line("Network %s is %s; next: holdfast host set HOST --data-network %s", cli.Clean(n.Name), n.CIDR, cli.Clean(n.Name))
			})
		}}
}

func (a *app) networkDelete() *cobra.Command {
	return &cobra.Command{Use: "delete NAME", Short: "Forget a network's name; refused while a host or job uses it", Args: cobra.ExactArgs(1), Long: "Forget a network's name. It is refused while a host or a job uses it.\n\n" + cli.ExitHelp,
		RunE: func(c *cobra.Command, args []string) error {
			var n api.Network
			if err := a.call(c.Context(), "DELETE", "/v1/networks/"+url.PathEscape(args[0]), nil, &n); err != nil {
				return err
			}
			return a.print(n, func(p *printer) { p.line("Network %s (%s) has no name any more.", cli.Clean(n.Name), n.CIDR) })
		}}
}

func (a *app) hostShow() *cobra.Command {
	return &cobra.Command{Use: "show NAME", Short: "Show a host, and the way its data goes", Args: cobra.ExactArgs(1), Long: "Show a host, and the way its data goes.\n\n" + cli.ExitHelp,
		RunE: func(c *cobra.Command, args []string) error {
			var h api.Host
			if err := a.call(c.Context(), "GET", "/v1/hosts/"+url.PathEscape(args[0]), nil, &h); err != nil {
				return err
			}
			return a.print(h, func(p *printer) { showHost(p, &h) })
		}}
}

func showHost(p *printer, h *api.Host) {
	p.row("Name:", h.Name)
	p.row("Id:", h.ID)
	p.row("State:", h.State)
	p.row("Seen:", when(h.Seen))
	p.row("Label:", label(h.Protected))
	p.row("Product:", h.Product+" "+h.Version)
	p.row("Agent:", h.Agent)
	p.row("VMs:", h.VMs)
	p.row("Data:", wayText(h.DataNetwork, h.Egress))
	if h.DataPath != nil {
		p.row("Data came:", fmt.Sprintf("from %s to %s, %s", h.DataPath.From, h.DataPath.To, when(h.DataPath.Time)))
	}
	if h.Problem != "" {
		p.row("Problem:", h.Problem)
	}
	for _, x := range h.Addresses {
		p.row("Address:", x.Address, x.Interface, x.Network)
	}
}

func (a *app) hostSet() *cobra.Command {
	var protected, network, egress string
	c := &cobra.Command{
		Use:   "set HOST [--protected=true|false] [--data-network CIDR|NAME|none] [--egress ADDRESS|none]",
		Short: "Protect a host, or choose the way its data goes",
		Long: "A protected host is never the target of a restore until an administrator takes the label off.\n\n" +
			"The data of a host's backups and restores leaves from its egress address, IPv4 or IPv6; or, where only a data network is chosen, from the\n" +
			"address that the host has in it. It goes to the appliance's address in that network, or, if it has none there, to where the agent is\n" +
			"enrolled. If the host does not have the address, its tasks fail and say so; its control connection goes on as it was. A job overrides\n" +
			"the network with --set network=NAME|CIDR|any.\n\n" + cli.ExitHelp,
		Args: cobra.ExactArgs(1),
	}
	c.Flags().StringVar(&protected, "protected", "", "true or false")
	c.Flags().StringVar(&network, "data-network", "", "name, CIDR, or none")
	c.Flags().StringVar(&egress, "egress", "", "address of the host, or none")
	c.RunE = func(c *cobra.Command, args []string) error {
		var s api.HostChange
		if c.Flags().Changed("protected") {
			on, err := strconv.ParseBool(protected)
			if err != nil {
				return cli.UsageError(c, holdfast.Errorf(holdfast.Invalid, "", "--protected is true or false, not %q", protected))
			}
			s.Protected = &on
		}
		if c.Flags().Changed("data-network") {
			s.DataNetwork = &network
		}
		if c.Flags().Changed("egress") {
			s.Egress = &egress
		}
		if s == (api.HostChange{}) {
			return cli.UsageError(c, holdfast.Errorf(holdfast.Invalid, "", "nothing to change").Advise("'%s --help' lists what there is", c.CommandPath()))
		}
		var h api.Host
		if err := a.call(c.Context(), "PATCH", "/v1/hosts/"+url.PathEscape(args[0]), s, &h); err != nil {
			return err
		}
		return a.print(h, func(p *printer) {
			if s.Protected != nil && *s.Protected {
				p.line("%s is protected: no restore changes it.", cli.Clean(h.Name))
			} else if s.Protected != nil {
				p.line("%s is not protected any more.", cli.Clean(h.Name))
			}
			if s.DataNetwork != nil || s.Egress != nil {
				p.line("%s: %s, from its next task on.", cli.Clean(h.Name), cli.Clean(wayText(h.DataNetwork, h.Egress)))
			}
			if h.Problem != "" {
				p.line("Attention: %s.", cli.Clean(h.Problem))
			}
		})
	}
	c.Flags().Lookup("protected").NoOptDefVal = "true"
	return c
}
