// What a user writes first. Built by three tiny projects, each of which finds the library in its own way.

#include <pmr_debug/pmr_debug.hpp>

#include <cstdio>
#include <memory_resource>
#include <string_view>
#include <vector>

int main() {
    pmr_debug::collecting_handler errors;
    pmr_debug::page_resource pages;
    pmr_debug::general_purpose_resource heap(&pages, {.name = "consumer", .handler = &errors});
    {
        std::pmr::vector<int> numbers({1, 2, 3}, &heap);
        numbers.resize(1000);
    }

    void* block = heap.allocate(24);
    heap.deallocate(block, 24);
    if (!heap.ok()) {
        std::puts("an error where there is none");
        return 1;
    }
    heap.deallocate(block, 24);
    if (errors.count(pmr_debug::error_kind::double_free) != 1) {
        std::puts("the double free was not found");
        return 1;
    }
    const std::string_view text = errors.back().text;
    std::fwrite(text.data(), 1, text.size(), stdout);
    if (text.find("main.cpp:") == std::string_view::npos) {
        std::puts("the report does not name this file");
        return 1;
    }
    return 0;
}
