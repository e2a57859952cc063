#!/bin/bash
echo "this test fails with code 7"
exit 7
