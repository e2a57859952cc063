#include <iostream>

#include "cc/greeting.h"

int main() {
  if (Greeting("test") == "Hello, test!") return 0;
  std::cerr << Greeting("test") << std::endl;
  return 1;
}
