// An echo server with a goroutine for each connection, run with GOMAXPROCS=1.
package main

import (
	"fmt"
	"log"
	"net"
)

const prefix = "Got: "

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on %s\n", listener.Addr())
	for {
		client, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go echo(client)
	}
}

// echo needs no call for TCP_NODELAY: Go sets it on each connection.
func echo(client net.Conn) {
	defer client.Close()
	buffer := make([]byte, len(prefix)+10000)
	copy(buffer, prefix)
	for {
		count, err := client.Read(buffer[len(prefix):])
		if err != nil {
			return
		}
		if _, err := client.Write(buffer[:len(prefix)+count]); err != nil {
			return
		}
	}
}
