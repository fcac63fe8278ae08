package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/holdfast-backup/holdfast"
	"github.com/holdfast-backup/holdfast/agent/lab"
	"github.com/holdfast-backup/holdfast/internal/cli"
	"github.com/holdfast-backup/holdfast/nbd"
)

func (a *app) labNBDCmd() *cobra.Command {
	var socket, listen string
	c := &cobra.Command{
		Use:   "nbd LABDIR VM DISKNO --socket PATH",
		Short: "Serve a VM's live disk over NBD until interrupted; writes are tracked",
		Args:  cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			if (socket == "") == (listen == "") {
				return cli.UsageError(c, errors.New("give either --socket or --listen"))
			}
			h, err := lab.Open(args[0])
			if err != nil {
				return err
			}
			no, err := diskNo(args[2])
			if err != nil {
				return err
			}
			d, err := h.OpenDisk(c.Context(), args[1], no)
			if err != nil {
				return err
			}
			address, uri := "tcp:"+listen, "nbd://"+listen
			if socket != "" {
				address, uri = "unix:"+socket, "nbd+unix:///?socket="+socket
				if abs, err := filepath.Abs(socket); err == nil {
					uri = "nbd+unix:///?socket=" + abs
				}
			}
			l, err := nbd.Listen(address)
			if err != nil {
				return errors.Join(err, d.Close())
			}
			if listen != "" {
				uri = "nbd://" + l.Addr().String()
			}
			fmt.Fprintf(a.out, "ready %s\n", uri)
			s := &nbd.Server{OnError: func(err error) {
				fmt.Fprintf(a.errw, "error: %s\n", err)
				if hint := holdfast.HintOf(err); hint != "" {
					fmt.Fprintf(a.errw, "  %s\n", hint)
				}
			}}
			err = s.Serve(c.Context(), l, nbd.Export{Description: args[1] + " disk " + args[2], Backend: d, MultiConn: true})
			return errors.Join(err, d.Close())
		},
	}
	c.Flags().StringVar(&socket, "socket", "", "unix socket to listen at")
	c.Flags().StringVar(&listen, "listen", "", "HOST:PORT to listen at instead; anybody who reaches it can write the disk")
	return c
}
