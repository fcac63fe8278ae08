package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/agent/transport"
	"github.com/holdfast-backup/holdfast/internal/cli"
)

func (a *app) enrollCmd() *cobra.Command {
	var data, name string
	var o transport.EnrollOptions
	c := &cobra.Command{
		Use:   "enroll --data ADIR --server HOST:PORT --key KEY",
		Short: "Make this host known to an appliance with a one-time key",
		Long: "Make this host known to an appliance with a one-time key, which 'holdfast host enroll NAME' prints there. The identity is kept in\n" +
			"ADIR and replaces an older one.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Name, o.Version = name, cli.Version()
			if name == "" {
				o.Name, _ = os.Hostname() // the appliance has its own name for the host; this one is only shown
			}
			id, err := transport.Enroll(c.Context(), o)
			if err != nil {
				return err
			}
			if err := id.Save(data); err != nil {
				return err
			}
			v := map[string]any{"host": id.Host, "name": id.Name, "server": id.Server}
			return a.print(v, func(w io.Writer) {
				fmt.Fprintf(w, "enrolled as %s (%s) at %s\n", cli.Clean(id.Name), id.Host, id.Server)
			})
		},
	}
	c.Flags().StringVar(&data, "data", "", "folder of the agent")
	c.Flags().StringVar(&o.Server, "server", "", "the appliance, HOST:PORT")
	c.Flags().StringVar(&o.Key, "key", "", "the one-time key")
	c.Flags().StringVar(&name, "name", "", "what this host calls itself (default: its host name)")
	required(c, "data", "server", "key")
	return c
}
