// A static uses a resource that is constructed after it, as happens with statics of different files. Argument-less:
// what happens, happens before main. With optimisation the compiler knows which function is called, and calls it
// without the object's pointer to virtual functions.

#include <pmr_debug/pmr_debug.hpp>

#include <vector>

extern pmr_debug::general_purpose_resource heap;

[[gnu::init_priority(200)]] pmr_debug::fault_handler faults;
[[gnu::init_priority(300)]] std::pmr::vector<int> table({1, 2, 3}, &heap);
[[gnu::init_priority(400)]] pmr_debug::general_purpose_resource heap({.name = "static heap"});

int main() {}
