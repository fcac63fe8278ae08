package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent"
	"github.com/holdfast-backup/holdfast/agent/lab"
	"github.com/holdfast-backup/holdfast/agent/transport"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"github.com/holdfast-backup/holdfast/internal/clock"
	"github.com/holdfast-backup/holdfast/internal/process"
)

// memory is how the agent's heap grows: a guest of the host, it keeps small. Its large buffers are made once.
var memory = process.Memory{Percent: 12}

func (a *app) runCmd() *cobra.Command {
	var data, labDir string
	c := &cobra.Command{
		Use:   "run --data ADIR --lab LABDIR",
		Short: "Serve the host's VMs to the appliance until interrupted",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			process.Limit(memory)
			stop, err := process.Profile("holdfast-agent")
			if err != nil {
				return holdfast.Errorf(holdfast.Invalid, "make profiles", "%w", err)
			}
			defer func() { err = errors.Join(err, stop()) }()
			id, err := transport.LoadIdentity(data)
			if err != nil {
				return err
			}
			h, err := lab.Open(labDir)
			if err != nil {
				return err
			}
			client, err := transport.New(id, clock.System)
			if err != nil {
				return err
			}
			defer client.Close()
			ag, err := agent.New(agent.Options{Hypervisor: h, Control: client, Dir: data, Host: id.Host, HostName: id.Name,
				Version: cli.Version(), Log: slog.New(slog.NewTextHandler(a.errw, nil))})
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "ready %s at %s\n", cli.Clean(id.Name), id.Server)
			err = ag.Run(c.Context())
			if c.Context().Err() != nil && errors.Is(err, context.Canceled) {
				return nil // asked to stop, and stopped
			}
			return err
		},
	}
	c.Flags().StringVar(&data, "data", "", "folder of the agent")
	c.Flags().StringVar(&labDir, "lab", "", "folder of the lab host")
	required(c, "data", "lab")
	return c
}

// required marks flags; a missing one is a usage error.
func required(c *cobra.Command, names ...string) {
	c.PreRunE = func(c *cobra.Command, _ []string) error {
		for _, name := range names {
			if f := c.Flags().Lookup(name); f == nil || !f.Changed {
				return cli.UsageError(c, holdfast.Errorf(holdfast.Invalid, "", "--%s is missing", name).Advise("'%s --help' shows how to use it", c.CommandPath()))
			}
		}
		return nil
	}
}
