// As used_before_made, with a page_resource: where the call is not virtual it looks itself whether it was constructed.

#include <pmr_debug/pmr_debug.hpp>

#include <vector>

extern pmr_debug::page_resource pages;

[[gnu::init_priority(200)]] pmr_debug::fault_handler faults;
[[gnu::init_priority(300)]] std::pmr::vector<int> table({1, 2, 3}, &pages);
[[gnu::init_priority(400)]] pmr_debug::page_resource pages;

int main() {}
