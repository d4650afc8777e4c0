// A plug-in that has the library inside is loaded, used and unloaded, over and over. Prints by how many MiB of
// addresses and by how many mappings the process has grown meanwhile.
#include <dlfcn.h>

#include <cstdio>
#include <fstream>
#include <string>

namespace {

struct size {
    long mebibytes = 0;
    long mappings = 0;
};

size now() {
    size s;
    long pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    s.mebibytes = pages / 256;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        ++s.mappings;
    }
    return s;
}

}  // namespace

int main(int, char** argv) {
    size before;
    for (int round = 0; round < 60; ++round) {
        if (round == 10) {
            before = now();
        }
        void* const plugin = ::dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        if (plugin == nullptr) {
            std::puts(::dlerror());
            return 2;
        }
        reinterpret_cast<void (*)()>(::dlsym(plugin, "work"))();
        ::dlclose(plugin);
    }
    const size after = now();
    std::printf("grown by %ld MiB, %ld mappings\n", after.mebibytes - before.mebibytes,
                after.mappings - before.mappings);
    return after.mebibytes - before.mebibytes < 64 && after.mappings - before.mappings < 50 ? 0 : 1;
}
