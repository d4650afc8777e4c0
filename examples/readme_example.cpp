#include <pmr_debug/pmr_debug.hpp>

struct shape {
    virtual ~shape() = default;
};
struct circle : shape {
    double x = 0, y = 0, radius = 1;
};

int main() {
    pmr_debug::page_resource pages;
    pmr_debug::general_purpose_resource heap(&pages, {.name = "heap"});
    std::pmr::polymorphic_allocator<> memory(&heap);

    shape* const s = memory.new_object<circle>();
    memory.delete_object(s);  // gives back sizeof(shape) bytes of a circle
}
