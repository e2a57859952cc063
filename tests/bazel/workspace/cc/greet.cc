#include <iostream>

#include "cc/greeting.h"

int main(int argc, char** argv) { std::cout << Greeting(argc > 1 ? argv[1] : "world") << std::endl; }
