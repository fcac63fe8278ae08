package main

import (
	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast/internal/demo"
)

func (a *app) demoCmd() *cobra.Command {
	var o demo.Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "See the whole product at work in a temporary folder",
		Long: "Start an appliance and an agent in a temporary folder, back a virtual machine up, change it, back up what changed, restore it,\n" +
			"compare every byte, and show what each step read, sent and stored. Nothing is left behind.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Out, o.JSON = a.out, a.json
			return demo.Run(c.Context(), o)
		},
	}
	c.Flags().StringVar(&o.VHDX, "vhdx", "", "use a copy of this disk instead of a made one")
	return c
}
